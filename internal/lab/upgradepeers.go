package lab

type peerReload struct{}

func (u *upgradeLab) beside() error { return nil }
func (u *upgradeLab) write() error  { return nil }
