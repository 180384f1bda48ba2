package lab

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
)

// releasesFile lists the window: a release and its commit a line, oldest first.
const releasesFile = "internal/frozen/testdata/releases.txt"

// previousBinary is where preparePrevious puts what it has built.
func previousBinary(dir string) string { return filepath.Join(dir, "previous") }

// preparePrevious builds the last release of the window from its commit. Where
// this is no clone of the project there is nothing to build it from: that is a
// reason, and no failure.
func preparePrevious(o Options, dir string) (reason string, err error) {
	planted := exec.Command("go", "build", "-tags", "planted", "-o", plantedBinary(dir), "./cmd/holdfast")
	if msg, err := planted.CombinedOutput(); err != nil {
		return "", fmt.Errorf("lab: build ./cmd/holdfast with its plants: %w\n%s", err, msg)
	}
	if o.Previous != "" {
		b, err := os.ReadFile(o.Previous)
		if err != nil {
			return "", fmt.Errorf("lab: %w", err)
		}
		return "", os.WriteFile(previousBinary(dir), b, 0o755)
	}
	text, err := os.ReadFile(releasesFile)
	if err != nil {
		return "", fmt.Errorf("lab: %w", err)
	}
	release, commit, err := lastRelease(string(text))
	if err != nil {
		return "", err
	}
	if reason, err = haveCommit(release, commit); err != nil || reason != "" {
		return reason, err
	}
	if err := checkNewestTag(release); err != nil {
		return "", err
	}
	fmt.Printf("building %s (%.12s)\n", release, commit)
	src := filepath.Join(dir, "previous.src")
	if err := os.Mkdir(src, 0o755); err != nil {
		return "", fmt.Errorf("lab: %w", err)
	}
	tree := filepath.Join(dir, "previous.tar")
	if _, err := git("archive", "--format=tar", "-o", tree, commit); err != nil {
		return "", err
	}
	if msg, err := exec.Command("tar", "-x", "-f", tree, "-C", src).CombinedOutput(); err != nil {
		return "", fmt.Errorf("lab: unpack %s: %w\n%s", release, err, msg)
	}
	build := exec.Command("go", "build", "-buildvcs=false", "-o", previousBinary(dir),
		"-ldflags", "-X github.com/holdfast-lb/holdfast/internal/node.Release="+release, "./cmd/holdfast")
	build.Dir = src
	if msg, err := build.CombinedOutput(); err != nil {
		return "", fmt.Errorf("lab: build %s: %w\n%s", release, err, msg)
	}
	return "", os.RemoveAll(src)
}

// lastRelease reads the last line of the window.
func lastRelease(text string) (release, commit string, err error) {
	for line := range strings.Lines(text) {
		line = strings.TrimSpace(line)
		if line == "" || strings.HasPrefix(line, "#") {
			continue
		}
		f := strings.Fields(line)
		if len(f) != 2 || !strings.HasPrefix(f[0], "v") || len(f[1]) != 40 {
			return "", "", fmt.Errorf("lab: %s: %q: want a release and its commit", releasesFile, line)
		}
		release, commit = f[0], f[1]
	}
	if release == "" {
		return "", "", fmt.Errorf("lab: %s: no release", releasesFile)
	}
	return release, commit, nil
}

// haveCommit sees that the commit is here, and fetches it into a shallow clone, or
// one that was made without tags.
func haveCommit(release, commit string) (reason string, err error) {
	if _, err := git("rev-parse", "--git-dir"); err != nil {
		return "this is no git repository, so there is no history: " + firstLine(err), nil
	}
	have := func() bool {
		_, err := git("cat-file", "-e", commit+"^{tree}")
		return err == nil
	}
	if have() {
		return "", nil
	}
	shallow, err := git("rev-parse", "--is-shallow-repository")
	if err != nil {
		return "", err
	}
	remote, err := git("remote")
	if err != nil {
		return "", err
	}
	remote = firstField(remote)
	if remote == "" {
		return fmt.Sprintf("%s (%.12s) is not in this repository, and there is no remote to fetch it from: its history is not the project's", release, commit), nil
	}
	fmt.Printf("%s (%.12s) is not in this clone; fetching it\n", release, commit)
	_, tag := git("fetch", "--quiet", "--depth=1", remote, "tag", release)
	if have() {
		return "", nil
	}
	_, all := git("fetch", "--quiet", "--tags", remote)
	if have() {
		return "", nil
	}
	if shallow == "true" {
		if _, all = git("fetch", "--quiet", "--unshallow", "--tags", remote); have() {
			return "", nil
		}
		if tag != nil && all != nil { // it cannot be reached at all
			return fmt.Sprintf("this clone is shallow and %s could not be fetched: %s", release, firstLine(all)), nil
		}
	}
	return "", fmt.Errorf("lab: %s (%s) is neither here nor at %s: %w", release, commit, remote, errors.Join(tag, all))
}

// checkNewestTag sees that the window has the newest release that this commit
// comes after: with a tag, a line is due.
func checkNewestTag(release string) error {
	from := "HEAD"
	if at, err := git("tag", "--points-at", "HEAD", "--list", "v*"); err == nil && at != "" {
		from = "HEAD^" // this is a release; the one before it counts
	}
	tag, err := git("describe", "--tags", "--abbrev=0", "--match", "v*", from)
	if err != nil {
		return nil // no tags here; the commit is what counts
	}
	if tag != release {
		return fmt.Errorf("lab: the release before this one is %s, and %s ends with %s: add a line, and what that release froze", tag, releasesFile, release)
	}
	return nil
}

// git runs a command on this repository.
func git(args ...string) (string, error) {
	// A checkout may belong to another user, as in containers; it is only read.
	cmd := exec.Command("git", append([]string{"-c", "safe.directory=*"}, args...)...)
	cmd.Env = append(os.Environ(), "GIT_TERMINAL_PROMPT=0", "LC_ALL=C")
	out, err := cmd.Output()
	if err != nil {
		var exit *exec.ExitError
		if errors.As(err, &exit) {
			return "", fmt.Errorf("git %s: %w: %s", args[0], err, strings.TrimSpace(string(exit.Stderr)))
		}
		return "", fmt.Errorf("git %s: %w", args[0], err)
	}
	return strings.TrimSpace(string(out)), nil
}

func firstLine(err error) string {
	s, _, _ := strings.Cut(err.Error(), "\n")
	return s
}

func firstField(s string) string {
	if f := strings.Fields(s); len(f) > 0 {
		return f[0]
	}
	return ""
}

// sayNothingShown tells loudly that nothing was shown, and why. The status is that
// of success: a copy without history is no fault of the code.
func sayNothingShown(reason string) int {
	if reason == "" {
		return 1
	}
	line := strings.Repeat("!", 78)
	fmt.Printf("\n%[1]s\nNOT SHOWN: that flows go from the previous release to this one and back.\n%[2]s\n%[1]s\n\n", line, reason)
	return 0
}
