// Package scsi is one SCSI direct-access logical unit over a file or a block
// device: a CDB and data-out go in, a status, sense data and data-in come out.
//
// It is transport-neutral and knows nothing of iSCSI but the shape of an I_T
// nexus. Its contract with the transport in front of it:
//
//   - One [Nexus] per session (SAM-5 §4.6), made with [NewNexus], given to
//     [Device.Attach] before the first command and to [Device.Detach] when the
//     session is gone. Attach raises POWER ON, RESET, OR BUS DEVICE RESET
//     OCCURRED for it; Detach drops its RESERVE(6/10), its PREVENT and its unit
//     attentions, never its persistent registration.
//   - [Device.OutLen] and [Device.InLen] say how many bytes a CDB moves, so
//     that the front can size R2Ts, buffers and residual counts. Both are
//     clamped to [MaxTransfer]; a CDB that asks for more fails in Execute with
//     INVALID FIELD IN CDB before any data is touched.
//   - [Device.Execute] is called with all of the data-out in Command.Out and
//     with room for data-in in Command.In. It may be called from any number of
//     goroutines. It blocks while the medium does; when it has returned, nothing
//     of that command will touch the medium any more. Cancelling its context
//     makes a long command (WRITE SAME, UNMAP, VERIFY) stop at its next chunk
//     and a command that has not begun not begin; a system call already under
//     way is waited for, so that "returned" keeps its meaning.
//   - Command.Out shorter than OutLen is what an initiator sent that announced
//     less than its CDB asks for: WRITE and WRITE AND VERIFY write the whole
//     blocks that came, other commands refuse. Bytes past OutLen are ignored but by
//     WRITE SAME and COMPARE AND WRITE, which refuse them: for those OutLen is
//     -1, "all that the initiator announced, up to MaxTransfer".
//
// The SCSI layer of github.com/gostor/gotgt decodes and answers what it answers
// rightly (standard INQUIRY, REPORT LUNS, READ CAPACITY, MODE SENSE, TEST UNIT
// READY, SEND DIAGNOSTIC; see gotgt.go); everything else is answered here.
package scsi
