package claim

import "fmt"

// HeldError says that a disk has another owner, who must release it first.
type HeldError struct {
	Disk  string // UID
	Owner Owner
}

func (e *HeldError) Error() string {
	switch {
	case e.Owner.Access != "":
		return fmt.Sprintf("disk %s is held by access %s", e.Disk, e.Owner.Access)
	default:
		return fmt.Sprintf("disk %s is held by launch %s of machine %s on host %s", e.Disk, e.Owner.Launch, e.Owner.VM, e.Owner.Host)
	}
}
