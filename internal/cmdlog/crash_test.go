package cmdlog

import (
	"bufio"
	"context"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"strconv"
	"testing"
)

const crashLogs = 3

func crashID(i int) string { return fmt.Sprintf("cmd_crash%021d", i) }

// writeUntilKilled is what the process that gets killed does: it continues the
// logs and says on stdout what was acknowledged.
func writeUntilKilled(dir string) {
	fail := func(err error) {
		if err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
	}
	ctx := context.Background()
	s, err := Open(dir, small)
	fail(err)
	var want [crashLogs][]int64
	for i := range want {
		last, err := s.Last(ctx, crashID(i))
		fail(err)
		want[i] = []int64{last}
	}
	for n := 0; ; n++ {
		i := n % crashLogs
		last := want[i][0]
		batch := output(crashID(i), int(last)+1+n%7, uint64(i))[last:]
		fail(s.Append(ctx, crashID(i), batch))
		want[i][0] += int64(len(batch))
		fmt.Println(i, want[i][0])
	}
}

// TestKilledWriter kills a writing process at random points: what it was told is
// there, nothing is there twice or torn, and it goes on from there.
func TestKilledWriter(t *testing.T) {
	dir := t.TempDir()
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	r := rand.New(rand.NewPCG(1, 2))
	var acked [crashLogs]int64
	for round := range 12 {
		cmd := exec.Command(self)
		cmd.Env = append(os.Environ(), "CMDLOG_CRASH_DIR="+dir)
		cmd.Stderr = os.Stderr
		out, err := cmd.StdoutPipe()
		if err != nil {
			t.Fatal(err)
		}
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		// The kill comes after a random number of acknowledgements, wherever the
		// process then is; what it said until it was dead counts too.
		kill, n := 1+r.IntN(60), 0
		lines := bufio.NewScanner(out)
		for ; lines.Scan(); n++ {
			var i int
			var seq int64
			if _, err := fmt.Sscan(lines.Text(), &i, &seq); err != nil {
				break // the last line may be torn
			}
			acked[i] = max(acked[i], seq)
			if n == kill {
				_ = cmd.Process.Kill()
			}
		}
		if err := cmd.Wait(); err == nil || n < kill {
			t.Fatalf("round %d: the writer ended by itself after %d lines: %v", round, n, err)
		}

		s, err := Open(dir, small)
		if err != nil {
			t.Fatal(err)
		}
		for i := range acked {
			last, err := s.Last(t.Context(), crashID(i))
			if err != nil {
				t.Fatal(err)
			}
			if last < acked[i] {
				t.Fatalf("round %d: log %d ends at %d, %d was acknowledged", round, i, last, acked[i])
			}
			kept := readAll(t, s, crashID(i), -1)
			if last == 0 {
				continue
			}
			want := output(crashID(i), int(last), uint64(i))
			if diff := diffChunks(want[kept[0].Seq-1:], kept); diff != "" {
				t.Fatalf("round %d: log %d: %s", round, i, diff)
			}
		}
		_ = s.Close()
	}
	t.Log("acknowledged: " + strconv.FormatInt(acked[0]+acked[1]+acked[2], 10))
}
