package lab

// Main is the entry of cmd/holdfast-lab.
func Main(args []string) int { return 2 }
