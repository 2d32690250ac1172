package testbed

import (
	"os"

	"reconciler/internal/testbed/record"
)

// CheckRecords reads the records in a raw file or block device and reports
// lost acknowledged writes, gaps and signs of two writers. lastPrinted is the
// highest number a guest printed for that disk.
func CheckRecords(path string, lastPrinted uint64) error {
	return checkFile(path, record.Ack{Last: lastPrinted})
}

// CheckLogs is CheckRecords for the disk with this guest serial, against all
// that the guests' serial logs say was acknowledged, writer by writer.
func CheckLogs(path, serial string, logs ...string) error {
	acks, err := Acks(serial, logs...)
	if err != nil {
		return err
	}
	return checkFile(path, acks...)
}

func checkFile(path string, acks ...record.Ack) error {
	f, err := os.Open(path)
	if err != nil {
		return err
	}
	defer f.Close()
	return record.Check(f, acks...)
}
