package protocol

import "time"

// Bounds of what requests and answers may hold.
const (
	MaxID      = 128
	MaxPath    = 4096
	MaxName    = 255
	MaxCommand = 256 << 10
	MaxEnv     = 128 << 10 // base and request together
	MaxEnvVars = 4096
	MaxText    = 512
	// MaxFiles bounds a listing, whatever limit was asked for.
	MaxFiles = 10_000
	// MaxProcesses bounds how many commands, ended ones included, a guest knows.
	MaxProcesses = 4096
	// maxDuration keeps durations far from overflow.
	maxDuration = int64(366 * 24 * time.Hour)
)

// Op is what a stream is for: the first byte of a request.
type Op byte

// The operations. How their streams go on is said at their requests.
const (
	OpPing Op = 1 + iota
	OpBind
	OpStart
	OpOutput
	OpProcesses
	OpKill
	OpForget
	OpStat
	OpList
	OpRead
	OpWrite
	OpCheckWrite
	OpDelete
	OpMkdir
	OpMove
	OpResolveDir
	OpDial
)

// Message is anything that can be encoded.
type Message interface {
	encode(e *Encoder)
	decode(d *Decoder)
}

// Request encodes an operation with what it is about.
func Request(op Op, m Message) []byte {
	e := Encoder{b: make([]byte, 0, 256)}
	e.byte(byte(op))
	if m != nil {
		m.encode(&e)
	}
	return e.b
}

// Operation splits a request.
func Operation(request []byte) (Op, []byte) {
	if len(request) == 0 {
		return 0, nil
	}
	return Op(request[0]), request[1:]
}

// Encode returns the bytes of a message.
func Encode(m Message) []byte {
	var e Encoder
	m.encode(&e)
	return e.b
}

// Decode reads a message that fills b.
func Decode(b []byte, m Message) error {
	d := NewDecoder(b)
	m.decode(d)
	return d.Finish()
}

// Answer encodes the last message of most streams: how the operation went.
// Result may be nil.
func Answer(result Message, f *Fault) []byte {
	var e Encoder
	if f != nil {
		e.byte(1)
		f.encode(&e)
		return e.b
	}
	e.byte(0)
	if result != nil {
		result.encode(&e)
	}
	return e.b
}

// DecodeAnswer reads an answer: the fault it tells of, or the result into m.
func DecodeAnswer(b []byte, m Message) (*Fault, error) {
	d := NewDecoder(b)
	if d.bool() {
		var f Fault
		f.decode(d)
		return &f, d.Finish()
	}
	if m != nil {
		m.decode(d)
	}
	return nil, d.Finish()
}

// Reason is the kind of a fault.
type Reason byte

// The reasons a guest may give. They stand for codes of the wire contract, or for
// errors between host and guest.
const (
	ReasonInternal Reason = 1 + iota
	ReasonInvalid
	ReasonOutside      // path_outside_workspace
	ReasonIsDirectory  // path_is_directory
	ReasonNotDirectory // path_not_directory
	ReasonNotFound     // file_not_found
	ReasonNoParent     // parent_directory_not_found
	ReasonExists       // file_already_exists
	ReasonNotEmpty     // directory_not_empty
	ReasonDenied       // forbidden, permission_denied
	ReasonTooLarge     // file_too_large; Limit
	ReasonSize         // upload_size_mismatch
	ReasonQuota        // quota_exceeded; Detail names it
	ReasonRefused      // nothing listens on the port
	ReasonNoProcess    // the guest does not know the command
	ReasonConflict     // bound to another sandbox, id used otherwise
	reasonEnd
)

// Fault is an operation that did not work out.
type Fault struct {
	Reason  Reason
	Text    string // for people
	Detail  string
	Limit   int64
	Current int64
}

func (f *Fault) Error() string { return f.Text }

func (f *Fault) encode(e *Encoder) {
	e.byte(byte(f.Reason))
	e.str(f.Text[:min(len(f.Text), MaxText)])
	e.str(f.Detail[:min(len(f.Detail), MaxText)])
	e.int(f.Limit)
	e.int(f.Current)
}

func (f *Fault) decode(d *Decoder) {
	f.Reason = Reason(d.byte())
	if f.Reason == 0 || f.Reason >= reasonEnd {
		d.fail("unknown reason")
	}
	f.Text = d.str(MaxText)
	f.Detail = d.str(MaxText)
	f.Limit = d.int()
	f.Current = d.int()
}

// Hello is the first message of each side.
type Hello struct {
	Protocol   int
	Build      string
	Generation string
	SandboxID  string
}

func (h *Hello) encode(e *Encoder) {
	e.int(int64(h.Protocol))
	e.str(h.Build)
	e.str(h.Generation)
	e.str(h.SandboxID)
}

func (h *Hello) decode(d *Decoder) {
	h.Protocol = int(d.between(0, 1<<16))
	h.Build = d.str(MaxID)
	h.Generation = d.str(MaxID)
	h.SandboxID = d.str(MaxID)
}

// Bind is the request of OpBind; the answer has no result.
type Bind struct {
	SandboxID    string
	Hostname     string
	Env          []string
	MaxProcesses int
	Now          Time
}

func (b *Bind) encode(e *Encoder) {
	e.str(b.SandboxID)
	e.str(b.Hostname)
	e.strs(b.Env)
	e.int(int64(b.MaxProcesses))
	e.time(b.Now)
}

func (b *Bind) decode(d *Decoder) {
	b.SandboxID = d.str(MaxID)
	b.Hostname = d.str(64)
	b.Env = d.strs(MaxEnvVars, MaxEnv)
	b.MaxProcesses = int(d.between(0, 1<<22))
	b.Now = d.time()
}

// Start is the request of OpStart. The guest answers with one data frame, an
// Answer, and goes on as an OpOutput after 0 would.
type Start struct {
	ID      string
	Command string
	Cwd     string
	Env     []string
	Timeout time.Duration
	Grace   time.Duration
}

func (s *Start) encode(e *Encoder) {
	e.str(s.ID)
	e.str(s.Command)
	e.str(s.Cwd)
	e.strs(s.Env)
	e.int(int64(s.Timeout))
	e.int(int64(s.Grace))
}

func (s *Start) decode(d *Decoder) {
	s.ID = d.str(MaxID)
	s.Command = d.str(MaxCommand)
	s.Cwd = d.str(MaxPath)
	s.Env = d.strs(MaxEnvVars, MaxEnv)
	s.Timeout = time.Duration(d.between(0, maxDuration))
	s.Grace = time.Duration(d.between(0, maxDuration))
}

// Output is the request of OpOutput. The guest sends chunks as data frames, each
// with a ChunkHead before its bytes, and ends with an Answer that holds an Exit.
// The host sends data frames with an Ack whenever it has stored more.
type Output struct {
	ID    string
	After int64
}

func (o *Output) encode(e *Encoder) { e.str(o.ID); e.int(o.After) }

func (o *Output) decode(d *Decoder) {
	o.ID = d.str(MaxID)
	o.After = d.between(0, 1<<62)
}

// ChunkHeadSize is the length of an encoded ChunkHead.
const ChunkHeadSize = 17

// ChunkHead says what the bytes after it are.
type ChunkHead struct {
	Seq    int64
	Stderr bool
	At     Time
}

// Put writes the head to b.
func (h *ChunkHead) Put(b []byte) {
	b[0] = 0
	if h.Stderr {
		b[0] = 1
	}
	put64(b[1:], uint64(h.Seq))
	put64(b[9:], uint64(h.At))
}

// SplitChunk reads the head and returns it with the bytes after it.
func SplitChunk(b []byte) (ChunkHead, []byte, error) {
	if len(b) <= ChunkHeadSize || len(b) > ChunkHeadSize+MaxChunk || b[0] > 1 {
		return ChunkHead{}, nil, violation("malformed chunk")
	}
	h := ChunkHead{Stderr: b[0] == 1, Seq: int64(at64(b[1:])), At: Time(at64(b[9:]))}
	return h, b[ChunkHeadSize:], nil
}

func put64(b []byte, v uint64) {
	putUint32(b, uint32(v))
	putUint32(b[4:], uint32(v>>32))
}

func at64(b []byte) uint64 { return uint64(uint32At(b)) | uint64(uint32At(b[4:]))<<32 }

// Ack says that everything up to Seq is durable.
type Ack struct{ Seq int64 }

func (a *Ack) encode(e *Encoder) { e.int(a.Seq) }
func (a *Ack) decode(d *Decoder) { a.Seq = d.between(0, 1<<62) }

// Cause says why a command ended.
type Cause byte

// The causes.
const (
	CauseExited Cause = 1 + iota
	CauseTimeout
	CauseCanceled
)

// Exit is how a command ended.
type Exit struct {
	Cause  Cause
	Code   int
	Signal int
	Killed bool
	Start  Time
	End    Time
	// LastSeq is that of the last chunk.
	LastSeq int64
}

func (x *Exit) encode(e *Encoder) {
	e.byte(byte(x.Cause))
	e.int(int64(x.Code))
	e.int(int64(x.Signal))
	e.bool(x.Killed)
	e.time(x.Start)
	e.time(x.End)
	e.int(x.LastSeq)
}

func (x *Exit) decode(d *Decoder) {
	x.Cause = Cause(d.byte())
	if x.Cause < CauseExited || x.Cause > CauseCanceled {
		d.fail("unknown cause")
	}
	x.Code = int(d.between(0, 255))
	x.Signal = int(d.between(0, 127))
	x.Killed = d.bool()
	x.Start = d.time()
	x.End = d.time()
	x.LastSeq = d.between(0, 1<<62)
}

// Process is one command in the answer of OpProcesses, which comes as data frames
// of one Process each and an Answer without result at the end.
type Process struct {
	ID      string
	Running bool
	NextSeq int64
}

func (p *Process) encode(e *Encoder) {
	e.str(p.ID)
	e.bool(p.Running)
	e.int(p.NextSeq)
}

func (p *Process) decode(d *Decoder) {
	p.ID = d.str(MaxID)
	p.Running = d.bool()
	p.NextSeq = d.between(1, 1<<62)
}

// Kill is the request of OpKill; the answer has no result.
type Kill struct {
	ID    string
	Grace time.Duration
	Cause Cause
}

func (k *Kill) encode(e *Encoder) {
	e.str(k.ID)
	e.int(int64(k.Grace))
	e.byte(byte(k.Cause))
}

func (k *Kill) decode(d *Decoder) {
	k.ID = d.str(MaxID)
	k.Grace = time.Duration(d.between(0, maxDuration))
	k.Cause = Cause(d.byte())
	if k.Cause < CauseExited || k.Cause > CauseCanceled {
		d.fail("unknown cause")
	}
}

// Forget is the request of OpForget; the answer has no result.
type Forget struct{ ID string }

func (f *Forget) encode(e *Encoder) { e.str(f.ID) }
func (f *Forget) decode(d *Decoder) { f.ID = d.str(MaxID) }

// Path is the request of OpStat and OpCheckWrite's kin that take one path: OpStat
// and OpMkdir answer with a FileInfo, OpDelete with nothing, OpResolveDir with a
// Resolved. OpList sends one FileInfo per data frame and ends with a Listed.
// OpRead sends a FileInfo, then the bytes as data frames, then an Answer.
type Path struct {
	Operation string // for those that change something
	Path      string
	Parents   bool  // OpMkdir
	Limit     int   // OpList
	Offset    int64 // OpRead
}

func (p *Path) encode(e *Encoder) {
	e.str(p.Operation)
	e.str(p.Path)
	e.bool(p.Parents)
	e.int(int64(p.Limit))
	e.int(p.Offset)
}

func (p *Path) decode(d *Decoder) {
	p.Operation = d.str(MaxID)
	p.Path = d.str(MaxOpen) // the guest says invalid_request to a long one itself
	p.Parents = d.bool()
	p.Limit = int(d.between(0, MaxFiles))
	p.Offset = d.between(0, 1<<62)
}

// Move is the request of OpMove; the answer is a FileInfo.
type Move struct {
	Operation string
	From, To  string
	Overwrite bool
}

func (m *Move) encode(e *Encoder) {
	e.str(m.Operation)
	e.str(m.From)
	e.str(m.To)
	e.bool(m.Overwrite)
}

func (m *Move) decode(d *Decoder) {
	m.Operation = d.str(MaxID)
	m.From = d.str(MaxOpen)
	m.To = d.str(MaxOpen)
	m.Overwrite = d.bool()
}

// Write is the request of OpWrite and OpCheckWrite. For OpWrite the host sends the
// bytes as data frames and an end, which commits them; the guest may answer before
// that, if it refuses. The answer is a FileInfo; OpCheckWrite's has no result.
type Write struct {
	Operation string
	Path      string
	Parents   bool
	Overwrite bool
	Size      int64
	Max       int64
}

func (w *Write) encode(e *Encoder) {
	e.str(w.Operation)
	e.str(w.Path)
	e.bool(w.Parents)
	e.bool(w.Overwrite)
	e.int(w.Size)
	e.int(w.Max)
}

func (w *Write) decode(d *Decoder) {
	w.Operation = d.str(MaxID)
	w.Path = d.str(MaxOpen)
	w.Parents = d.bool()
	w.Overwrite = d.bool()
	w.Size = d.between(-1, 1<<62)
	w.Max = d.between(0, 1<<62)
}

// FileInfo describes a file.
type FileInfo struct {
	Path     string // absolute, of the last element's name
	Size     int64
	Dir      bool
	Modified Time
}

func (f *FileInfo) encode(e *Encoder) {
	e.str(f.Path)
	e.int(f.Size)
	e.bool(f.Dir)
	e.time(f.Modified)
}

func (f *FileInfo) decode(d *Decoder) {
	f.Path = d.str(MaxPath + MaxName + 1)
	f.Size = d.between(0, 1<<62)
	f.Dir = d.bool()
	f.Modified = d.time()
}

// Listed ends a listing.
type Listed struct{ Truncated bool }

func (l *Listed) encode(e *Encoder) { e.bool(l.Truncated) }
func (l *Listed) decode(d *Decoder) { l.Truncated = d.bool() }

// Resolved is an absolute path.
type Resolved struct{ Path string }

func (r *Resolved) encode(e *Encoder) { e.str(r.Path) }
func (r *Resolved) decode(d *Decoder) { r.Path = d.str(MaxPath) }

// Port is the request of OpDial. The guest answers with one data frame, an Answer;
// after that data frames are the bytes of the connection in both directions, and
// an empty end closes one direction.
type Port struct{ Port int }

func (p *Port) encode(e *Encoder) { e.int(int64(p.Port)) }
func (p *Port) decode(d *Decoder) { p.Port = int(d.between(1, 65535)) }
