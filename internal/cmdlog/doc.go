// Package cmdlog keeps the output of commands on disk: exact bytes in the order
// of arrival, numbered, readable while they are still being written and long
// after. It knows command ids, chunks and files; it knows nothing of sandboxes,
// states, HTTP or how the bytes came here.
//
// # On disk
//
// A log is one or more append-only segments. The first one is a single file, so
// that the many commands that print little cost one file each; the others, and
// what is kept of dropped ones, live in a directory beside it:
//
//	xx/cmd_....log             the first segment
//	xx/cmd_....d/<first seq>   the later ones
//	xx/cmd_....d/stdout.head   beginning of a stream that retention dropped
//	xx/cmd_....d/stderr.head
//
// A segment begins with a header that says where it stands in the log, so that
// no other segment is needed to read it, and goes on with records. The checksum
// of each record is seeded by the header, which holds a random number: what a
// command prints can never pass for a record. A log that is finished ends with a
// seal record.
//
// # Durability
//
// What was acknowledged has been handed to the kernel and so survives the end of
// the process. There is no fsync: a power loss may cost the last seconds. A
// record that was being written when the process died is cut off when the log is
// next looked at.
//
// # Concurrency
//
// Readers and followers take a log's lock only to learn how far it goes and read
// the files without it, so none of them can hold up the appender. The package
// starts no goroutine.
package cmdlog
