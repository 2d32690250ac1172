package kvm

// scope starts a process in a transient systemd scope: in a cgroup of its own,
// so that stopping the agent's unit does not reach it, and with the open files
// it inherits. systemd-run becomes the command; its process id stays.
func scope(uid string) []string {
	return []string{
		"systemd-run", "--scope", "--quiet", "--collect", "--unit=reconciler-vm-" + uid + ".scope",
		"--description=virtual machine " + uid, "--property=After=network-online.target", "--",
	}
}
