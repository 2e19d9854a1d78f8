//go:build guest || vm

package disk

// command is one opening that the host asks a guest for, and what to do with
// the volume if it opens.
type command struct {
	Name          string   `json:"name"`
	Passphrases   []string `json:"passphrases"`
	Existing      bool     `json:"existing"`
	MinGeneration uint64   `json:"minGeneration"`
	Integrity     bool     `json:"integrity"`
	Write         string   `json:"write"` // into the volume's file "written"
	Stop          bool     `json:"stop"`  // no opening: the end
}

// answer is what came of it.
type answer struct {
	Code     string   `json:"code"` // "" = opened
	Error    string   `json:"error"`
	Ms       int64    `json:"ms"`
	Alloc    uint64   `json:"alloc"`    // bytes allocated: a derivation needs its matrix
	Mappings int      `json:"mappings"` // devices that the device mapper made, by the kernel's word
	Tables   []string `json:"tables"`   // live ones while the volume was open
	Created  bool     `json:"created"`
	Kind     Kind     `json:"kind"`
	File     string   `json:"file"` // content of the volume's file "file"
}

// benchTurns is how often each side of a comparison runs.
const benchTurns = 3

// answerMark begins the line of a test's output that is an answer.
const answerMark = "answer "
