package cli

import "strings"

// joinWords makes one shell command of the words behind `--`: plain words stay
// as they are, others are put into single quotes, so that the remote shell sees
// the very words the local one saw.
func joinWords(words []string) string {
	quoted := make([]string, len(words))
	for i, w := range words {
		quoted[i] = quoteWord(w)
	}
	return strings.Join(quoted, " ")
}

func quoteWord(w string) string {
	if w != "" && !strings.ContainsFunc(w, func(r rune) bool { return !plainRune(r) }) {
		return w
	}
	return "'" + strings.ReplaceAll(w, "'", `'\''`) + "'"
}

func plainRune(r rune) bool {
	return r >= 'A' && r <= 'Z' || r >= 'a' && r <= 'z' || r >= '0' && r <= '9' || strings.ContainsRune("_./:=@%+-", r)
}
