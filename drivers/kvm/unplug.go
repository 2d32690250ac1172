package kvm

import (
	"context"
	"encoding/json"
	"fmt"
	"time"

	"reconciler/drivers/kvm/qmp"
)

// GuestHoldsError says that the guest has not let go of a device: it is still
// booting, has no driver, or refuses. The request stands; asking again later is
// right.
type GuestHoldsError struct{ Device string }

func (e *GuestHoldsError) Error() string {
	return fmt.Sprintf("the guest has not released device %s", e.Device)
}

// unplugAgain is how often the request is repeated: QEMU drops one that the
// guest has not looked at for some seconds.
const unplugAgain = 3 * time.Second

// unplug takes a device from the guest. The caller has asked the storage.
func (l *live) unplug(ctx context.Context, device string) error {
	if !l.now.devices[device] {
		return nil
	}
	sub := l.conn.Subscribe(64)
	defer sub.Close()
	wait, cancel := context.WithTimeout(ctx, l.d.cfg.UnplugTimeout)
	defer cancel()
	again := time.NewTicker(unplugAgain)
	defer again.Stop()
	request := func() error {
		err := l.conn.Raw(wait).DeviceDel(device)
		if refused(err) { // gone, or asked for already
			return nil
		}
		return err
	}
	if err := request(); err != nil {
		return err
	}
	for {
		select {
		case e, ok := <-sub.C():
			if !ok {
				return qmp.ErrClosed
			}
			if e.Lost {
				if gone, err := l.unplugged(ctx, device); gone || err != nil {
					return err
				}
			}
			if named(e, device) {
				switch e.Name {
				case "DEVICE_DELETED":
					delete(l.now.devices, device)
					return nil
				case "DEVICE_UNPLUG_GUEST_ERROR":
					return &GuestHoldsError{device}
				}
			}
		case <-again.C:
			if err := request(); err != nil && wait.Err() == nil {
				return err
			}
		case <-wait.Done():
			if ctx.Err() != nil {
				return ctx.Err()
			}
			if gone, err := l.unplugged(ctx, device); gone || err != nil {
				return err
			}
			return &GuestHoldsError{device}
		}
	}
}

func named(e qmp.Event, device string) bool {
	var data struct{ Device string }
	return json.Unmarshal(e.Data, &data) == nil && data.Device == device
}

func (l *live) unplugged(ctx context.Context, device string) (bool, error) {
	if err := l.refresh(ctx); err != nil {
		return false, err
	}
	return !l.now.devices[device], nil
}

// dropped ignores QEMU's refusal to remove what is not there.
func dropped(err error) error {
	if refused(err) {
		return nil
	}
	return err
}
