package flow

import "flag"

var rewrite = flag.Bool("rewrite", false, "write the results of this run to testdata")
