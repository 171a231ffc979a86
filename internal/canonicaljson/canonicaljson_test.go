package canonicaljson_test

import (
	"bytes"
	"encoding/binary"
	"encoding/json"
	"errors"
	"math"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"crownest.dev/crownest/internal/canonicaljson"
)

func TestTransform(t *testing.T) {
	for _, c := range []struct{ name, in, want string }{
		{"empty object", " {\t} ", `{}`},
		{"empty array", "[\r\n]", `[]`},
		{"words", `[ true , false,null ]`, `[true,false,null]`},
		{"order", `{"b":1,"a":2,"aa":3,"":4}`, `{"":4,"a":2,"aa":3,"b":1}`},
		{"order inside", `{"x":{"b":[{"d":1,"c":2}],"a":0}}`, `{"x":{"a":0,"b":[{"c":2,"d":1}]}}`},
		// U+FB33 is below U+1F600 as a character, above it as UTF-16.
		{"order as UTF-16", "{\"\ufb33\":1,\"\U0001F600\":2,\"\u20ac\":3,\"\\r\":4,\"1\":5}", "{\"\\r\":4,\"1\":5,\"\u20ac\":3,\"\U0001F600\":2,\"\ufb33\":1}"},
		{"escapes", `"\u0041\/\u000a\b\f\n\r\t\"\\\u001f\u007f\u2028"`, "\"A/\\n\\b\\f\\n\\r\\t\\\"\\\\\\u001f\u007f\u2028\""},
		{"surrogates", `"\ud83d\uDE00"`, "\"\U0001F600\""},
		{"names equal after escapes differ in order only", `{"\u0062":1,"a":2}`, `{"a":2,"b":1}`},
	} {
		t.Run(c.name, func(t *testing.T) {
			got, err := canonicaljson.Transform([]byte(c.in))
			if err != nil {
				t.Fatal(err)
			}
			if d := cmp.Diff(c.want, string(got)); d != "" {
				t.Errorf("(-want +got):\n%s", d)
			}
		})
	}
}

// TestNumbers has the samples of RFC 8785, appendix B.
func TestNumbers(t *testing.T) {
	for _, c := range []struct {
		bits uint64
		want string
	}{
		{0x0000000000000000, "0"}, {0x8000000000000000, "0"}, {0x0000000000000001, "5e-324"},
		{0x8000000000000001, "-5e-324"}, {0x7fefffffffffffff, "1.7976931348623157e+308"},
		{0xffefffffffffffff, "-1.7976931348623157e+308"}, {0x4340000000000000, "9007199254740992"},
		{0xc340000000000000, "-9007199254740992"}, {0x4430000000000000, "295147905179352830000"},
		{0x44b52d02c7e14af5, "9.999999999999997e+22"}, {0x44b52d02c7e14af6, "1e+23"},
		{0x44b52d02c7e14af7, "1.0000000000000001e+23"}, {0x444b1ae4d6e2ef4e, "999999999999999700000"},
		{0x444b1ae4d6e2ef4f, "999999999999999900000"}, {0x444b1ae4d6e2ef50, "1e+21"},
		{0x3eb0c6f7a0b5ed8c, "9.999999999999997e-7"}, {0x3eb0c6f7a0b5ed8d, "0.000001"},
		{0x41b3de4355555553, "333333333.3333332"}, {0x41b3de4355555554, "333333333.33333325"},
		{0x41b3de4355555555, "333333333.3333333"}, {0x41b3de4355555556, "333333333.3333334"},
		{0x41b3de4355555557, "333333333.33333343"}, {0xbecbf647612f3696, "-0.0000033333333333333333"},
		{0x43143ff3c1cb0959, "1424953923781206.2"},
	} {
		text, err := json.Marshal(math.Float64frombits(c.bits))
		if err != nil {
			t.Fatal(err)
		}
		got, err := canonicaljson.Transform(text)
		if err != nil || string(got) != c.want {
			t.Errorf("%016x: got %s, %v, want %s", c.bits, got, err, c.want)
		}
	}
	for in, want := range map[string]string{"1E2": "100", "-0.0": "0", "1.50": "1.5", "4.50e-7": "4.5e-7", "1e-400": "0", "100000000000000000000000": "1e+23"} {
		if got, err := canonicaljson.Transform([]byte(in)); err != nil || string(got) != want {
			t.Errorf("%s: got %s, %v, want %s", in, got, err, want)
		}
	}
}

func TestRefuses(t *testing.T) {
	for _, in := range []string{
		"", " ", "{", "[", "[1", "[1,", "[1,]", "[1 2]", "{\"a\"", "{\"a\":", "{\"a\":1", "{\"a\":1,}", "{a:1}", "{1:2}",
		"tru", "nul", "True", "01", "-", "+1", ".5", "1.", "1e", "1e+", "0x1", "NaN", "1e999", "-1e999",
		`"`, `"a`, `"\`, `"\u12`, `"\x"`, "\"\x1f\"", "\"\x00\"", "\"\xff\"", "\"\xed\xa0\x80\"",
		`"\ud800"`, `"\udc00"`, `"\ud800\u0041"`, `"\ud800\ud800"`, `"\ud800x"`,
		`{"a":1,"a":2}`, `{"a":1,"b":2,"\u0061":3}`, `{"x":[{"a":1,"a":1}]}`,
		"1 2", "{} x", "\ufeff{}", "[1]\x00",
		strings.Repeat("[", canonicaljson.MaxDepth+2) + strings.Repeat("]", canonicaljson.MaxDepth+2),
	} {
		if got, err := canonicaljson.Transform([]byte(in)); !errors.Is(err, canonicaljson.ErrInvalid) {
			t.Errorf("%q: got %q, %v", in, got, err)
		}
	}
	deep := strings.Repeat("[", canonicaljson.MaxDepth) + strings.Repeat("]", canonicaljson.MaxDepth)
	if _, err := canonicaljson.Transform([]byte(deep)); err != nil {
		t.Errorf("as deep as allowed: %v", err)
	}
}

func FuzzTransform(f *testing.F) {
	for _, s := range []string{
		`{"b":[1,2.50,-0,1e21],"a":{"é":"\u00e9\ud83d\ude00","":null}}`, `{"a":1,"a":2}`, `"\ud800"`, `[[[]]]`, `1e-7`, "\"\xff\"",
	} {
		f.Add([]byte(s))
	}
	f.Fuzz(func(t *testing.T, in []byte) {
		out, err := canonicaljson.Transform(in)
		if err != nil {
			return
		}
		if !json.Valid(in) {
			t.Fatalf("took %q, which is no JSON", in)
		}
		again, err := canonicaljson.Transform(out)
		if err != nil || !bytes.Equal(out, again) {
			t.Fatalf("%q became %q and then %q, %v", in, out, again, err)
		}
		var a, b any
		if err := json.Unmarshal(in, &a); err != nil {
			t.Fatal(err)
		}
		if err := json.Unmarshal(out, &b); err != nil {
			t.Fatal(err)
		}
		if d := cmp.Diff(a, b); d != "" {
			t.Fatalf("%q means something else than %q:\n%s", out, in, d)
		}
	})
}

// FuzzNumber compares every double with what a decimal reader makes of its form.
func FuzzNumber(f *testing.F) {
	f.Add([]byte{1, 2, 3, 4, 5, 6, 7, 8})
	f.Fuzz(func(t *testing.T, in []byte) {
		if len(in) != 8 {
			return
		}
		n := math.Float64frombits(binary.BigEndian.Uint64(in))
		text, err := json.Marshal(n)
		if err != nil {
			return // no number of JSON
		}
		out, err := canonicaljson.Transform(text)
		if err != nil {
			t.Fatal(err)
		}
		var back float64
		if err := json.Unmarshal(out, &back); err != nil || back != n {
			t.Fatalf("%g became %s", n, out)
		}
	})
}

func TestTooManyValues(t *testing.T) {
	in := "[" + strings.Repeat("{},", canonicaljson.MaxValues) + "{}]"
	if _, err := canonicaljson.Transform([]byte(in)); !errors.Is(err, canonicaljson.ErrInvalid) {
		t.Errorf("%d values: %v", canonicaljson.MaxValues+2, err)
	}
}
