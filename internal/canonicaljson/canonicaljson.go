// Package canonicaljson brings JSON into the one form of RFC 8785, so that equal
// values have equal bytes and can be hashed. It knows JSON and nothing else.
package canonicaljson

import (
	"errors"
	"fmt"
	"math"
	"slices"
	"strconv"
	"strings"
	"unicode/utf16"
	"unicode/utf8"
)

// Bounds of what Transform accepts.
const (
	MaxDepth = 100
	MaxBytes = 64 << 20
	// MaxValues bounds the values in one text: each costs far more in memory than
	// the three bytes it may be written in.
	MaxValues = 100_000
)

// ErrInvalid is wrapped by every error of Transform: the text is not JSON, or not
// of the kind that has a canonical form (I-JSON, RFC 7493).
var ErrInvalid = errors.New("no canonical JSON form")

// Transform returns the canonical form of one JSON text. It refuses what two
// readers could take for different values: doubled names, invalid UTF-8, lone
// surrogates, numbers beyond a double.
func Transform(text []byte) ([]byte, error) {
	if len(text) > MaxBytes {
		return nil, fmt.Errorf("%w: longer than %d bytes", ErrInvalid, MaxBytes)
	}
	p := parser{in: text, out: make([]byte, 0, len(text))}
	p.space()
	if err := p.value(0); err != nil {
		return nil, err
	}
	p.space()
	if p.pos != len(p.in) {
		return nil, p.fail("text behind the value")
	}
	return p.out, nil
}

// parser reads in from pos and appends the canonical form to out.
type parser struct {
	in     []byte
	pos    int
	out    []byte
	values int
}

func (p *parser) fail(why string) error {
	return fmt.Errorf("%w: %s at byte %d", ErrInvalid, why, p.pos)
}

// peek returns the next byte, 0 at the end; a NUL is valid nowhere in JSON.
func (p *parser) peek() byte {
	if p.pos < len(p.in) {
		return p.in[p.pos]
	}
	return 0
}

func (p *parser) space() {
	for p.pos < len(p.in) {
		switch p.in[p.pos] {
		case ' ', '\t', '\n', '\r':
			p.pos++
		default:
			return
		}
	}
}

func (p *parser) value(depth int) error {
	if depth > MaxDepth {
		return p.fail("nested too deeply")
	}
	if p.values++; p.values > MaxValues {
		return p.fail("too many values")
	}
	switch c := p.peek(); {
	case c == '{':
		return p.object(depth)
	case c == '[':
		return p.array(depth)
	case c == '"':
		s, err := p.text()
		if err != nil {
			return err
		}
		p.out = appendText(p.out, s)
		return nil
	case c == '-' || '0' <= c && c <= '9':
		return p.number()
	}
	for _, word := range []string{"true", "false", "null"} {
		if strings.HasPrefix(string(p.in[p.pos:min(len(p.in), p.pos+len(word))]), word) {
			p.pos += len(word)
			p.out = append(p.out, word...)
			return nil
		}
	}
	return p.fail("no value")
}

func (p *parser) array(depth int) error {
	p.pos++
	p.out = append(p.out, '[')
	p.space()
	if p.peek() == ']' {
		p.pos++
		p.out = append(p.out, ']')
		return nil
	}
	for {
		p.space()
		if err := p.value(depth + 1); err != nil {
			return err
		}
		p.space()
		c := p.peek()
		if c != ',' && c != ']' {
			return p.fail("an array that does not go on")
		}
		p.pos++
		p.out = append(p.out, c)
		if c == ']' {
			return nil
		}
	}
}

// member is one member of an object: its name as it is sorted, and where its
// canonical text lies in the output.
type member struct {
	units    []uint16
	from, to int
}

func (p *parser) object(depth int) error {
	p.pos++
	p.out = append(p.out, '{')
	p.space()
	if p.peek() == '}' {
		p.pos++
		p.out = append(p.out, '}')
		return nil
	}
	var members []member
	start := len(p.out)
	for {
		p.space()
		if p.peek() != '"' {
			return p.fail("a member without a name")
		}
		name, err := p.text()
		if err != nil {
			return err
		}
		p.space()
		if p.peek() != ':' {
			return p.fail("a member without a value")
		}
		p.pos++
		p.space()
		from := len(p.out)
		p.out = appendText(p.out, name)
		p.out = append(p.out, ':')
		if err := p.value(depth + 1); err != nil {
			return err
		}
		members = append(members, member{utf16.Encode([]rune(name)), from, len(p.out)})
		p.space()
		c := p.peek()
		if c != ',' && c != '}' {
			return p.fail("an object that does not go on")
		}
		p.pos++
		p.out = append(p.out, c)
		if c == '}' {
			break
		}
	}
	return p.order(start, members)
}

// order puts the members that were written from start on in the order of their
// names, as UTF-16.
func (p *parser) order(start int, members []member) error {
	byName := func(a, b member) int { return slices.Compare(a.units, b.units) }
	if !slices.IsSortedFunc(members, byName) {
		written := slices.Clone(p.out[start:])
		slices.SortFunc(members, byName)
		p.out = p.out[:start]
		for i, m := range members {
			if i > 0 {
				p.out = append(p.out, ',')
			}
			p.out = append(p.out, written[m.from-start:m.to-start]...)
		}
		p.out = append(p.out, '}')
	}
	for i := 1; i < len(members); i++ {
		if slices.Equal(members[i-1].units, members[i].units) {
			return p.fail("a doubled name in the object that ends")
		}
	}
	return nil
}

// text reads a string and returns its value.
func (p *parser) text() (string, error) {
	p.pos++
	var b []byte
	for {
		switch c := p.peek(); {
		case c == '"':
			p.pos++
			return string(b), nil
		case c == '\\':
			r, err := p.escape()
			if err != nil {
				return "", err
			}
			b = utf8.AppendRune(b, r)
		case c < 0x20:
			return "", p.fail("a string with a control character or without an end")
		case c < utf8.RuneSelf:
			b = append(b, c)
			p.pos++
		default:
			r, n := utf8.DecodeRune(p.in[p.pos:])
			if r == utf8.RuneError && n == 1 {
				return "", p.fail("invalid UTF-8")
			}
			b = append(b, p.in[p.pos:p.pos+n]...)
			p.pos += n
		}
	}
}

// escape reads one escaped character, a pair of surrogates included.
func (p *parser) escape() (rune, error) {
	p.pos++
	c := p.peek()
	p.pos++
	switch c {
	case '"', '\\', '/':
		return rune(c), nil
	case 'b':
		return '\b', nil
	case 'f':
		return '\f', nil
	case 'n':
		return '\n', nil
	case 'r':
		return '\r', nil
	case 't':
		return '\t', nil
	case 'u':
	default:
		return 0, p.fail("an unknown escape")
	}
	r, err := p.unit()
	if err != nil || !utf16.IsSurrogate(r) {
		return r, err
	}
	if p.peek() == '\\' && p.pos+1 < len(p.in) && p.in[p.pos+1] == 'u' {
		p.pos += 2
		low, err := p.unit()
		if err != nil {
			return 0, err
		}
		if both := utf16.DecodeRune(r, low); both != utf8.RuneError {
			return both, nil
		}
	}
	return 0, p.fail("half a surrogate pair")
}

// unit reads the four digits of an escape.
func (p *parser) unit() (rune, error) {
	var r rune
	for range 4 {
		c := p.peek()
		switch {
		case '0' <= c && c <= '9':
			r = r<<4 | rune(c-'0')
		case 'a' <= c && c <= 'f':
			r = r<<4 | rune(c-'a'+10)
		case 'A' <= c && c <= 'F':
			r = r<<4 | rune(c-'A'+10)
		default:
			return 0, p.fail("an escape that is no number")
		}
		p.pos++
	}
	return r, nil
}

// number reads a number in the grammar of JSON.
func (p *parser) number() error {
	start := p.pos
	if p.peek() == '-' {
		p.pos++
	}
	if p.peek() == '0' {
		p.pos++
	} else if !p.digits() {
		return p.fail("a number without digits")
	}
	if p.peek() == '.' {
		p.pos++
		if !p.digits() {
			return p.fail("a number without digits")
		}
	}
	if c := p.peek(); c == 'e' || c == 'E' {
		p.pos++
		if c := p.peek(); c == '+' || c == '-' {
			p.pos++
		}
		if !p.digits() {
			return p.fail("a number without digits")
		}
	}
	f, err := strconv.ParseFloat(string(p.in[start:p.pos]), 64)
	if err != nil || math.IsInf(f, 0) {
		return p.fail("a number beyond a double")
	}
	p.out = appendNumber(p.out, f)
	return nil
}

func (p *parser) digits() bool {
	start := p.pos
	for c := p.peek(); '0' <= c && c <= '9'; c = p.peek() {
		p.pos++
	}
	return p.pos > start
}

// appendNumber writes f as ECMAScript does: plain digits from 1e-6 up to 1e21,
// an exponent without leading zeros beyond.
func appendNumber(out []byte, f float64) []byte {
	if f == 0 {
		return append(out, '0') // the negative zero too
	}
	if a := math.Abs(f); a >= 1e-6 && a < 1e21 {
		return strconv.AppendFloat(out, f, 'f', -1, 64)
	}
	text := strconv.FormatFloat(f, 'e', -1, 64)
	mantissa, exponent, _ := strings.Cut(text, "e")
	sign, digits := exponent[:1], strings.TrimLeft(exponent[1:], "0")
	return append(out, mantissa+"e"+sign+digits...)
}

// appendText writes a string with the fewest escapes.
func appendText(out []byte, s string) []byte {
	const hex = "0123456789abcdef"
	out = append(out, '"')
	for i := range len(s) {
		switch c := s[i]; c {
		case '"', '\\':
			out = append(out, '\\', c)
		case '\b':
			out = append(out, '\\', 'b')
		case '\f':
			out = append(out, '\\', 'f')
		case '\n':
			out = append(out, '\\', 'n')
		case '\r':
			out = append(out, '\\', 'r')
		case '\t':
			out = append(out, '\\', 't')
		default:
			if c < 0x20 {
				out = append(out, '\\', 'u', '0', '0', hex[c>>4], hex[c&15])
			} else {
				out = append(out, c)
			}
		}
	}
	return append(out, '"')
}
