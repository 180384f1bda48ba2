package lab

func (u *upgradeLab) hundred() error { return nil }
