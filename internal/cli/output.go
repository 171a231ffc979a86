package cli

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"slices"
	"strconv"
	"strings"
	"unicode"
	"unicode/utf8"

	"golang.org/x/term"
)

func newApp(stdio Stdio) *app {
	a := &app{Stdio: stdio, outTTY: isTerminal(stdio.Out), errTTY: isTerminal(stdio.Err)}
	a.color = a.outTTY && os.Getenv("NO_COLOR") == "" && os.Getenv("TERM") != "dumb"
	return a
}

func isTerminal(v any) bool {
	f, ok := v.(*os.File)
	return ok && term.IsTerminal(int(f.Fd()))
}

// rawJSON is a resource as the server sent it. What is printed is made of that,
// so that fields of a newer server are not lost.
type rawJSON interface{ RawJSON() json.RawMessage }

// record prints one resource.
func (a *app) record(r rawJSON) error { return a.recordOf(r.RawJSON()) }

// recordWith prints one resource with members that the command adds.
func (a *app) recordWith(r rawJSON, extra ...member) error {
	raw, err := withMembers(r.RawJSON(), extra...)
	if err != nil {
		return fmt.Errorf("printing the answer: %w", err)
	}
	return a.recordOf(raw)
}

func (a *app) recordOf(raw json.RawMessage) error {
	if a.json {
		return a.envelope(raw)
	}
	fields, err := membersOf(raw)
	if err != nil {
		return fmt.Errorf("printing the answer: %w", err)
	}
	var b strings.Builder
	for _, f := range leading(fields) {
		b.WriteString(a.line(f))
	}
	return a.write(b.String())
}

// line is one member of a record.
func (a *app) line(f member) string {
	key := printable(f.key)
	if a.color {
		key = "\x1b[1m" + key + "\x1b[0m"
	}
	return key + ": " + f.text() + "\n"
}

// list prints resources as rows of columns. A column is the header, or the
// header and the member it shows as "header=member".
func (a *app) list(items []json.RawMessage, columns ...string) error {
	if a.json {
		return a.envelope(joinArray(items))
	}
	rows := make([][]string, 0, len(items)+1)
	header := make([]string, len(columns))
	members := make([]string, len(columns))
	for i, c := range columns {
		name, member, renamed := strings.Cut(c, "=")
		if !renamed {
			member = name
		}
		header[i], members[i] = name, member
	}
	rows = append(rows, header)
	for _, item := range items {
		row := make([]string, len(members))
		for i, member := range members {
			row[i] = cell(lookup(item, strings.Split(member, ".")))
		}
		rows = append(rows, row)
	}
	if a.outTTY {
		return a.write(aligned(rows, a.color))
	}
	var b strings.Builder
	for _, row := range rows {
		b.WriteString(strings.Join(row, "\t"))
		b.WriteByte('\n')
	}
	return a.write(b.String())
}

// envelope prints {"data":...} on one line.
func (a *app) envelope(data json.RawMessage) error {
	var b bytes.Buffer
	b.WriteString(`{"data":`)
	if err := json.Compact(&b, data); err != nil {
		return fmt.Errorf("printing the answer: %w", err)
	}
	b.WriteString("}\n")
	return a.write(b.String())
}

// value prints something that was made here, as a record or an envelope.
func (a *app) value(v any) error {
	raw, err := json.Marshal(v)
	if err != nil {
		return fmt.Errorf("printing the answer: %w", err)
	}
	return a.recordOf(raw)
}

func (a *app) write(s string) error {
	if _, err := io.WriteString(a.Out, s); err != nil {
		return fmt.Errorf("writing the output: %w", err)
	}
	return nil
}

func rawList[T rawJSON](items []T) []json.RawMessage {
	list := make([]json.RawMessage, len(items))
	for i, item := range items {
		list[i] = item.RawJSON()
	}
	return list
}

func joinArray(items []json.RawMessage) json.RawMessage {
	var b bytes.Buffer
	b.WriteByte('[')
	for i, item := range items {
		if i > 0 {
			b.WriteByte(',')
		}
		b.Write(item)
	}
	b.WriteByte(']')
	return b.Bytes()
}

// withMembers adds members at the end of a JSON object, replacing those it has.
func withMembers(raw json.RawMessage, extra ...member) (json.RawMessage, error) {
	fields, err := membersOf(raw)
	if err != nil {
		return nil, err
	}
	for _, e := range extra {
		fields = slices.DeleteFunc(fields, func(f member) bool { return f.key == e.key })
		fields = append(fields, e)
	}
	var b bytes.Buffer
	b.WriteByte('{')
	for i, f := range fields {
		if i > 0 {
			b.WriteByte(',')
		}
		key, err := json.Marshal(f.key)
		if err != nil {
			return nil, err
		}
		b.Write(key)
		b.WriteByte(':')
		b.Write(f.value)
	}
	b.WriteByte('}')
	return b.Bytes(), nil
}

func stringMember(key, value string) member {
	b, _ := json.Marshal(value) // a string always encodes
	return member{key, b}
}

// member is one member of a JSON object, in the order of the text.
type member struct {
	key   string
	value json.RawMessage
}

func membersOf(raw json.RawMessage) ([]member, error) {
	d := json.NewDecoder(bytes.NewReader(raw))
	t, err := d.Token()
	if err != nil {
		return nil, err
	}
	if t != json.Delim('{') {
		return nil, fmt.Errorf("not a JSON object")
	}
	var fields []member
	for d.More() {
		t, err := d.Token()
		if err != nil {
			return nil, err
		}
		key, _ := t.(string) // the decoder lets nothing else stand here
		var value json.RawMessage
		if err := d.Decode(&value); err != nil {
			return nil, err
		}
		fields = append(fields, member{key, value})
	}
	return fields, nil
}

// leadingKeys come first in a record, in this order.
var leadingKeys = []string{
	"id", "secret", "status", "url", "path", "name", "port", "authMode", "expiresAt", "createdAt", "updatedAt",
}

func leading(fields []member) []member {
	rank := func(f member) int {
		if i := slices.Index(leadingKeys, f.key); i >= 0 {
			return i
		}
		return len(leadingKeys)
	}
	sorted := slices.Clone(fields)
	slices.SortStableFunc(sorted, func(x, y member) int { return rank(x) - rank(y) })
	return sorted
}

// text is the member's value for people: strings as they are as long as they fit
// on one line, everything nested as JSON.
func (f member) text() string {
	var s string
	if json.Unmarshal(f.value, &s) == nil {
		if s == printable(s) {
			return s
		}
		return strconv.Quote(s)
	}
	var b bytes.Buffer
	if json.Compact(&b, f.value) != nil {
		return ""
	}
	return printable(b.String())
}

func lookup(raw json.RawMessage, path []string) json.RawMessage {
	for _, key := range path {
		var object map[string]json.RawMessage
		if json.Unmarshal(raw, &object) != nil {
			return nil
		}
		raw = object[key]
	}
	return raw
}

// cell is a value in a row: it never holds a TAB or a line end.
func cell(raw json.RawMessage) string {
	if len(raw) == 0 || string(raw) == "null" {
		return ""
	}
	var s string
	if json.Unmarshal(raw, &s) == nil {
		return printable(s)
	}
	return member{value: raw}.text()
}

// printable escapes what would move the cursor, colour the terminal or break a
// line: names and messages may come from code that nobody trusts.
func printable(s string) string {
	clean := func(r rune) bool {
		return r != utf8.RuneError && (r == ' ' || unicode.IsGraphic(r)) && r != '\u2028' && r != '\u2029'
	}
	if !strings.ContainsFunc(s, func(r rune) bool { return !clean(r) }) {
		return s
	}
	var b strings.Builder
	for _, r := range s {
		if clean(r) {
			b.WriteRune(r)
			continue
		}
		quoted := strconv.QuoteRuneToASCII(r)
		b.WriteString(quoted[1 : len(quoted)-1])
	}
	return b.String()
}

// aligned lays rows out in columns; the first one is the header.
func aligned(rows [][]string, color bool) string {
	widths := make([]int, len(rows[0]))
	for _, row := range rows {
		for i, c := range row {
			widths[i] = max(widths[i], utf8.RuneCountInString(c))
		}
	}
	var b strings.Builder
	for n, row := range rows {
		var line strings.Builder
		for i, c := range row {
			line.WriteString(c)
			if i < len(row)-1 {
				line.WriteString(strings.Repeat(" ", widths[i]-utf8.RuneCountInString(c)+2))
			}
		}
		text := strings.TrimRight(line.String(), " ")
		if n == 0 && color {
			text = "\x1b[1m" + text + "\x1b[0m"
		}
		b.WriteString(text)
		b.WriteByte('\n')
	}
	return b.String()
}
