package corpus

import (
	"fmt"
	"strings"
)

// Generate makes the streams of this package. What a proxy has to do with each
// follows from the RFC alone: Refuse where it says MUST, or where any other
// reading than refusing is one that some server does not share; Either where it
// leaves a choice.
func Generate() []File {
	return []File{
		{"chunks", chunkVectors()},
		{"fields", fieldVectors()},
		{"framing", framingVectors()},
		{"octets", octetVectors()},
		{"pipelines", pipelineVectors()},
		{"requests", requestVectors()},
		{"served", servedVectors()},
	}
}

const crlf = "\r\n"

// vectors collects streams under names that say what is in them.
type vectors []Vector

func (v *vectors) add(want Want, id string, octets ...string) {
	*v = append(*v, Vector{id, []byte(strings.Join(octets, "")), want})
}

// head makes a head of lines, with Host behind the first.
func head(lines ...string) string {
	lines = append([]string{lines[0], "Host: a.example"}, lines[1:]...)
	return strings.Join(lines, crlf) + crlf + crlf
}

// smuggled is the request that a deceived reader sees.
const smuggled = "GET " + SmuggledTarget + " HTTP/1.1\r\nHost: b.example\r\n\r\n"

// byCoding ends, for those who read chunks, before the smuggled request; for
// those who read a length it is all one body.
func byCoding() string { return "0\r\n\r\n" + smuggled }

// byLength is one body for those who read chunks; for those who read a length
// of 4 the smuggled request begins behind its first line.
func byLength() string {
	return fmt.Sprintf("%02x\r\n%s\r\n0\r\n\r\n", len(smuggled), smuggled)
}

// both makes two streams with a line that some read as a coding, and with a
// length. In each the two readings differ by a request.
func (v *vectors) both(want Want, id, line string) {
	v.add(want, id+"/coding", head("POST / HTTP/1.1", fmt.Sprintf("Content-Length: %d", len(byCoding())), line), byCoding())
	v.add(want, id+"/length", head("POST / HTTP/1.1", line, "Content-Length: 4"), byLength())
}

// framingVectors are about which framing rules (RFC 9112, sections 6.1 to 6.3).
func framingVectors() []Vector {
	var v vectors
	// Both fields, rightly written: MAY be refused, or read as chunks.
	for i, value := range []string{"chunked", "Chunked", "CHUNKED", "chunked ", "\tchunked"} {
		v.both(Either, fmt.Sprintf("both/%d", i), "Transfer-Encoding: "+value)
	}
	// A name that is none, or a folded line.
	for _, x := range []struct{ id, line string }{
		{"space-colon", "Transfer-Encoding : chunked"},
		{"tab-colon", "Transfer-Encoding\t: chunked"},
		{"space-first", " Transfer-Encoding: chunked"},
		{"tab-first", "\tTransfer-Encoding: chunked"},
		{"space-inside", "Transfer Encoding: chunked"},
		{"no-colon", "Transfer-Encoding chunked"},
		{"equals", "Transfer-Encoding=chunked"},
		{"empty-name", ": chunked"},
		{"two-colons", "Transfer-Encoding:: chunked"},
		{"bom", "\xef\xbb\xbfTransfer-Encoding: chunked"},
		{"homoglyph", "Tr\xd0\xb0nsfer-Encoding: chunked"},
		{"soft-hyphen", "Transfer\xc2\xadEncoding: chunked"},
		{"quoted-name", "\"Transfer-Encoding\": chunked"},
		{"folded-value", "Transfer-Encoding:\r\n chunked"},
		{"folded-behind", "Transfer-Encoding: chunked\r\n ;x"},
		{"folded-into", "X: y\r\n Transfer-Encoding: chunked"},
		{"folded-tab", "X: y\r\n\tTransfer-Encoding: chunked"},
		{"empty-fold", "X: y\r\n \r\n Transfer-Encoding: chunked"},
		{"lf-before", "X: y\nTransfer-Encoding: chunked"},
		{"cr-before", "X: y\rTransfer-Encoding: chunked"},
		{"lf-cr-before", "X: y\n\rTransfer-Encoding: chunked"},
		{"cr-cr-lf", "X: y\r\r\nTransfer-Encoding: chunked"},
		{"lf-after", "Transfer-Encoding: chunked\nX: y"},
		{"cr-after", "Transfer-Encoding: chunked\rX: y"},
		{"lf-value", "Transfer-Encoding:\nchunked"},
		{"nul-name", "Transfer-Encoding\x00: chunked"},
		{"nul-line", "X: y\x00\r\nTransfer-Encoding: chunked"},
	} {
		v.both(Refuse, "line/"+x.id, x.line)
	}
	// Other names by the letter. With a length alone they mean nothing.
	for _, name := range []string{"Transfer_Encoding", "Transfer-Encodin", "X-Transfer-Encoding", "Transfer-Encoding-", "TransferEncoding", "Transfer.Encoding", "TE", "Content-Encoding"} {
		v.add(Either, "other-name/"+name, head("POST / HTTP/1.1", fmt.Sprintf("Content-Length: %d", len(byCoding())), name+": chunked"), byCoding())
	}
	// Codings that are not just chunked, with a length and alone.
	for i, value := range []string{
		"", ",", "identity", "gzip", "chunk", "chunkedx", "xchunked", "x-chunked", "chun ked", "chunked;q=1", "chunked; q=0.5", "chunked ;", "\"chunked\"", "'chunked'",
		"chunked, chunked", "chunked,chunked", "chunked, identity", "identity, chunked", "gzip, chunked", "chunked, gzip",
		"chunked\x0b", "\x0bchunked", "\x0cchunked", "chunked\x00", "\x00chunked", "chunked\x7f", "\x85chunked", "\xa0chunked", "chunked\xa0", "chunked\xc2\xa0", "\xef\xbc\xa3hunked",
		"chunked\\", "{chunked}", "chunked\x1f", "cow", "chunked cow", "cow chunked", "c\rhunked", "chunked\r", "deflate, chunked, x", "Chunked-",
	} {
		id := fmt.Sprintf("coding/%02d", i)
		v.both(Refuse, id, "Transfer-Encoding: "+value)
		v.add(Refuse, id+"/alone", head("POST / HTTP/1.1", "Transfer-Encoding: "+value), byCoding())
	}
	// Empty elements of a list mean nothing (RFC 9110, section 5.6.1.2).
	for i, value := range []string{"chunked,", ",chunked", ", ,chunked", "chunked, ,"} {
		v.both(Either, fmt.Sprintf("coding/empty/%d", i), "Transfer-Encoding: "+value)
		v.add(Either, fmt.Sprintf("coding/empty/%d/alone", i), head("POST / HTTP/1.1", "Transfer-Encoding: "+value), byCoding())
	}
	for _, x := range []struct{ id, a, b string }{
		{"chunked-chunked", "chunked", "chunked"}, {"chunked-identity", "chunked", "identity"}, {"identity-chunked", "identity", "chunked"},
		{"empty-chunked", "", "chunked"}, {"chunked-empty", "chunked", ""}, {"gzip-chunked", "gzip", "chunked"}, {"chunked-cow", "chunked", "cow"},
	} {
		lines := "Transfer-Encoding: " + x.a + crlf + "Transfer-Encoding: " + x.b
		v.both(Refuse, "two-codings/"+x.id, lines)
		v.add(Refuse, "two-codings/"+x.id+"/alone", head("POST / HTTP/1.1", lines), byCoding())
		v.add(Refuse, "two-codings/"+x.id+"/apart", head("POST / HTTP/1.1", "Transfer-Encoding: "+x.a, "X: y", "transfer-encoding: "+x.b), byCoding())
	}
	// Chunks in HTTP/1.0: its framing is faulty (section 6.1).
	v.add(Refuse, "old/coding", head("POST / HTTP/1.0", "Transfer-Encoding: chunked"), byCoding())
	v.add(Refuse, "old/both", head("POST / HTTP/1.0", "Connection: keep-alive", "Transfer-Encoding: chunked", "Content-Length: 4"), byLength())
	// Lengths that are none, or two.
	for i, value := range []string{
		"", "+4", "-4", " +4", "4 4", "4,", ",4", "4;", "4.0", "0x4", "4e0", "4h", "four", "\"4\"", "4\x00", "4\x0b", "\x0b4", "4\xa0", "\xd9\xa4", "4_0", "1'000",
		"18446744073709551620", "9223372036854775812", "99999999999999999999999999", "4\r", "4\t5", "4 , 5", "4, 5", "5, 4", "0, 4", "4-", "NaN",
	} {
		v.add(Refuse, fmt.Sprintf("length/%02d", i), head("POST / HTTP/1.1", "Content-Length: "+value), "xxxx", smuggled)
	}
	v.add(Either, "length/33-bits", head("POST / HTTP/1.1", "Content-Length: 4294967300"), "xxxx", smuggled)
	v.add(Either, "length/zeros", head("POST / HTTP/1.1", "Content-Length: 0004"), "xxxx")
	v.add(Either, "length/same-list", head("POST / HTTP/1.1", "Content-Length: 4, 4"), "xxxx")
	for _, x := range []struct{ id, a, b string }{
		{"differ", "4", "68"}, {"differ-reverse", "68", "4"}, {"zero-first", "0", "4"}, {"zero-last", "4", "0"}, {"empty-first", "", "4"}, {"empty-last", "4", ""}, {"sign", "4", "+4"},
	} {
		v.add(Refuse, "two-lengths/"+x.id, head("POST / HTTP/1.1", "Content-Length: "+x.a, "Content-Length: "+x.b), "xxxx", smuggled)
		v.add(Refuse, "two-lengths/"+x.id+"/apart", head("POST / HTTP/1.1", "Content-Length: "+x.a, "X: y", "content-length: "+x.b), "xxxx", smuggled)
	}
	v.add(Either, "two-lengths/same", head("POST / HTTP/1.1", "Content-Length: 4", "Content-Length: 4"), "xxxx")
	v.add(Either, "two-lengths/zeros", head("POST / HTTP/1.1", "Content-Length: 4", "Content-Length: 04"), "xxxx")
	for _, x := range []struct{ id, line string }{
		{"space-colon", "Content-Length : 4"}, {"tab-colon", "Content-Length\t: 4"}, {"space-first", " Content-Length: 4"}, {"tab-first", "\tContent-Length: 4"},
		{"folded", "Content-Length:\r\n 4"}, {"folded-digits", "Content-Length: 4\r\n 0"}, {"nul-name", "Content-Length\x00: 4"}, {"lf-before", "X: y\nContent-Length: 4"},
		{"cr-before", "X: y\rContent-Length: 4"}, {"lf-after", "Content-Length: 4\nX: y"}, {"no-colon", "Content-Length 4"}, {"folded-into", "X: y\r\n Content-Length: 4"},
		{"bom", "\xef\xbb\xbfContent-Length: 4"}, {"space-inside", "Content Length: 4"},
	} {
		v.add(Refuse, "length-line/"+x.id, head("POST / HTTP/1.1", x.line), "xxxx", smuggled)
		v.add(Refuse, "length-line/"+x.id+"/first", x.line+crlf+head("POST / HTTP/1.1"), "xxxx", smuggled)
	}
	// Framing that Connection names must not get lost (RFC 9110, section 7.6.1).
	for _, name := range []string{"Content-Length", "Host", "content-length, close", "close, Content-Length", "Connection", "X, content-LENGTH"} {
		v.add(Either, "hop/"+name, head("POST / HTTP/1.1", "Connection: "+name, fmt.Sprintf("Content-Length: %d", len(smuggled))), smuggled)
	}
	v.add(Either, "hop/Transfer-Encoding", head("POST / HTTP/1.1", "Connection: Transfer-Encoding", "Transfer-Encoding: chunked"), byLength())
	// Requests that usually have no body, with one.
	for _, method := range []string{"GET", "HEAD", "DELETE", "OPTIONS", "TRACE", "PROPFIND"} {
		v.add(Either, "body/"+method+"/length", head(method+" / HTTP/1.1", fmt.Sprintf("Content-Length: %d", len(smuggled))), smuggled)
		v.add(Either, "body/"+method+"/coding", head(method+" / HTTP/1.1", "Transfer-Encoding: chunked"), byLength())
	}
	for _, line := range []string{"Content-Length: 4", "Transfer-Encoding: chunked"} {
		v.add(Either, "body/CONNECT/"+line[:1], "CONNECT a.example:443 HTTP/1.1\r\nHost: a.example:443\r\n"+line+crlf+crlf, byLength())
	}
	return v
}

// chunkVectors are about the framing within a chunked body (RFC 9112, section
// 7.1).
func chunkVectors() []Vector {
	var v vectors
	post := head("POST / HTTP/1.1", "Transfer-Encoding: chunked")
	for i, size := range []string{
		"", " 4", "\t4", "0x4", "0X4", "+4", "-4", "4h", "4 5", "4,", "4_", "_4", "0_4", "4\x00", "\x004", "4\x0b", "4\x0c", "g", "4.", "\"4\"", "4\xa0", "\xef\xbc\x94", "4:", "4=", "4\r", "\r\n4", "\n4",
		"10000000000000004", "ffffffffffffffff4", "8000000000000004", "100000004\x00", "4 x", "4 \x0b", "4/", "4#", "4\\",
	} {
		v.add(Refuse, fmt.Sprintf("size/%02d", i), post, size, "\r\nxxxx\r\n0\r\n\r\n", smuggled)
	}
	v.add(Either, "size/too-large", post, "ffffffffffffffff\r\nxxxx\r\n0\r\n\r\n")
	v.add(Either, "size/zeros", post, "0000000000000004\r\nxxxx\r\n0\r\n\r\n")
	v.add(Either, "size/many-zeros", post, strings.Repeat("0", 300), "4\r\nxxxx\r\n0\r\n\r\n")
	v.add(Either, "size/long-last", post, "4\r\nxxxx\r\n", strings.Repeat("0", 40), "\r\n\r\n")
	v.add(Serve, "size/case", post, "a\r\n0123456789\r\nB\r\n0123456789x\r\n0\r\n\r\n")
	v.add(Either, "size/space-behind", post, "4 \r\nxxxx\r\n0\r\n\r\n")
	v.add(Either, "size/tab-behind", post, "4\t\r\nxxxx\r\n0\t\r\n\r\n")
	// Extensions: a recipient ignores those it does not know.
	for i, ext := range []string{";", ";;", "; ", ";=", ";=x", ";a=", ";a b", ";\"a\"", ";a=\"", ";a=\"b", ";a=\"b\\", ";a=b c", " a", ";a=b,c", ";a=\x00", ";\x00", ";a=\x0b", ";a\x7f", ";a=\"\x01\"", ";a=\xff", ";\xff=b"} {
		v.add(Either, fmt.Sprintf("extension/bad/%02d", i), post, "4", ext, "\r\nxxxx\r\n0\r\n\r\n")
	}
	for i, ext := range []string{";a", ";a=b", ";a=\"b\"", ";a=\"b\\\"c\"", ";a;b=c", " ; a = b", "\t;\ta", ";a=\"; x\"", ";a=\"\"", ";" + strings.Repeat("x", 200), ";a=\"" + strings.Repeat("y", 400) + "\""} {
		v.add(Either, fmt.Sprintf("extension/good/%02d", i), post, "4", ext, "\r\nxxxx\r\n0", ext, "\r\n\r\n")
	}
	// Octets that end a line for some, in an extension: what follows is data
	// for one and a size for the other.
	for _, x := range []struct{ id, end string }{{"lf", "\n"}, {"cr", "\r"}, {"cr-cr-lf", "\r\r\n"}, {"lf-cr", "\n\r"}, {"nul", "\x00"}, {"cr-x-lf", "\rx\n"}} {
		inner := "0\r\n\r\n" + smuggled
		v.add(Refuse, "extension/end/"+x.id, post, fmt.Sprintf("2;a%sxx\r\n%x\r\n%s\r\n0\r\n\r\n", x.end, len(inner), inner))
		v.add(Refuse, "extension/quoted-end/"+x.id, post, fmt.Sprintf("2;a=\"%s\"\r\nxx\r\n0\r\n\r\n", x.end), smuggled)
		v.add(Refuse, "size/end/"+x.id, post, "4"+x.end+"xxxx\r\n0\r\n\r\n", smuggled)
		v.add(Refuse, "data/end/"+x.id, post, "4\r\nxxxx"+x.end+"0\r\n\r\n", smuggled)
		v.add(Refuse, "last/end/"+x.id, post, "4\r\nxxxx\r\n0"+x.end+"\r\n", smuggled)
		v.add(Refuse, "trailers/end/"+x.id, post, "4\r\nxxxx\r\n0\r\n"+x.end, smuggled)
		v.add(Refuse, "trailer/end/"+x.id, post, "4\r\nxxxx\r\n0\r\nX: y"+x.end+"\r\n", smuggled)
		v.add(Refuse, "trailer/inside/"+x.id, post, "4\r\nxxxx\r\n0\r\nX: y"+x.end+"Z: z\r\n\r\n", smuggled)
	}
	// Data that is longer or shorter than its size.
	for i, data := range []string{"", "xxx\r\n", "xxxxx\r\n", "xxxx", "xxxx\r", "xxxx\n", "xxxx\r\r\n", "xxxx\n\r\n", "xxxx\r\n\r\n", "xxxxXX", "xxxx  \r\n", "xxxx;\r\n", "\r\nxxxx\r\n"} {
		v.add(Refuse, fmt.Sprintf("data/%02d", i), post, "4\r\n", data, "0\r\n\r\n", smuggled)
	}
	// Trailers. Framing there has no say (RFC 9110, section 6.5.1).
	for i, line := range []string{"X: y", "X:y", "x-y-z:", "ETag: \"x\"", "X: y\r\nZ: z", "X: \xff"} {
		v.add(Serve, fmt.Sprintf("trailer/good/%02d", i), post, "4\r\nxxxx\r\n0\r\n", line, "\r\n\r\n", head("GET /next HTTP/1.1"))
	}
	for i, line := range []string{"Content-Length: 68", "Transfer-Encoding: chunked", "Transfer-Encoding: identity", "Host: b.example", "Connection: close", "Trailer: x", "Content-Length : 4"} {
		v.add(Either, fmt.Sprintf("trailer/framing/%02d", i), post, "4\r\nxxxx\r\n0\r\n", line, "\r\n\r\n")
	}
	for i, line := range []string{"X", "X y", "X : y", " X: y", "\tX: y", ": y", "X: \x00", "X: \x0b", "X\x00: y", "X: y\r\n folded", "GET " + SmuggledTarget + " HTTP/1.1", "X\xff: y", "X: \x7f", "(X): y"} {
		v.add(Refuse, fmt.Sprintf("trailer/bad/%02d", i), post, "4\r\nxxxx\r\n0\r\n", line, "\r\n\r\n", smuggled)
	}
	// Bodies that stop.
	for i, part := range []string{"", "4", "4\r", "4\r\n", "4\r\nxx", "4\r\nxxxx", "4\r\nxxxx\r", "4\r\nxxxx\r\n", "4\r\nxxxx\r\n0", "4\r\nxxxx\r\n0\r\n", "4\r\nxxxx\r\n0\r\nX: y", "4\r\nxxxx\r\n0\r\nX: y\r\n", "4\r\nxxxx\r\n0\r\n\r"} {
		v.add(Either, fmt.Sprintf("cut/%02d", i), post, part)
	}
	v.add(Serve, "many", post, strings.Repeat("1\r\nx\r\n", 500), "0\r\n\r\n", head("GET /next HTTP/1.1"))
	v.add(Serve, "binary", post, "8\r\n\x00\r\n\x00\xff\r\n0\r\n0\r\n\r\n", head("GET /next HTTP/1.1"))
	v.add(Serve, "looks-like-an-end", post, "7\r\n\r\n0\r\n\r\n\r\n0\r\n\r\n", head("GET /next HTTP/1.1"))
	return v
}

// hardOctets are those that one reader or another takes for white space, for
// an end or for nothing.
var hardOctets = []byte{0x00, 0x01, 0x08, 0x09, 0x0a, 0x0b, 0x0c, 0x0d, 0x0e, 0x1a, 0x1b, 0x1c, 0x1f, 0x20, 0x22, 0x2c, 0x3a, 0x3b, 0x5c, 0x5f, 0x7f, 0x80, 0x85, 0xa0, 0xad, 0xff}

// octetVectors put a hard octet where it may change what a line says.
func octetVectors() []Vector {
	var v vectors
	for _, c := range hardOctets {
		o, id := string([]byte{c}), fmt.Sprintf("%02x", c)
		never := c < ' ' && c != '\t' || c == 0x7f // in a head
		want := func(inName bool) Want {
			if never || inName && c != ':' && c != '_' {
				return Refuse
			}
			return Either
		}
		v.both(want(true), id+"/name-first", o+"Transfer-Encoding: chunked")
		v.both(want(true), id+"/name-last", "Transfer-Encoding"+o+": chunked")
		v.both(want(c != '\t' && c != ' '), id+"/value-first", "Transfer-Encoding:"+o+"chunked")
		v.both(want(c != '\t' && c != ' '), id+"/value-last", "Transfer-Encoding: chunked"+o)
		v.both(want(false), id+"/line-before", "X: y"+o+"\r\nTransfer-Encoding: chunked")
		v.both(want(false), id+"/in-another-line", "X: y"+o+"Transfer-Encoding: chunked")
		v.add(want(true), id+"/method", "GE"+o+"T / HTTP/1.1\r\nHost: a.example\r\n\r\n")
		v.add(want(false), id+"/value", head("GET / HTTP/1.1", "X: a"+o+"b"))
		if c != ':' && c != '_' && c != '"' && c != ',' && c != ';' && c != '\\' {
			v.add(Refuse, id+"/target", "GET /a"+o+"b HTTP/1.1\r\nHost: a.example\r\n\r\n")
			v.add(Refuse, id+"/version", "GET / HTTP/1.1"+o+"\r\nHost: a.example\r\n\r\n")
			v.add(Refuse, id+"/between", "GET"+o+o+"/ HTTP/1.1\r\nHost: a.example\r\n\r\n")
		}
	}
	return v
}
