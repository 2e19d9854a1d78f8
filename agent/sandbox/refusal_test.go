package sandbox

import (
	"strings"
	"testing"

	"hpcr/agent/hpl"
)

func TestReadRefusalBelievesOnlyWhatFits(t *testing.T) {
	const none = "HPL11001E: Unable to parse/decrypt contract. -> the contract was refused without a reason"
	tests := map[string]struct{ out, want string }{
		"a refusal":           {`{"code":"HPL12001E","path":"/env/volumes/#1","detail":"sign again","cause":"x"}`, "HPL12001E: Unable to validate the contract signature semantically. -> /env/volumes/#1: sign again"},
		"an unknown code":     {`{"code":"HPL99999E"}`, none},
		"a success as error":  {`{"code":"HPL10001I"}`, none},
		"an escape":           {`{"code":"HPL12001E","detail":"\u001b[2J"}`, none},
		"a line break":        {`{"code":"HPL12001E","detail":"a\nb"}`, none},
		"a name in the path":  {`{"code":"HPL12001E","path":"/env/my name"}`, none},
		"a very long detail":  {`{"code":"HPL12001E","detail":"` + strings.Repeat("x", 401) + `"}`, none},
		"an unknown field":    {`{"code":"HPL12001E","more":1}`, none},
		"nothing":             {``, none},
		"something else":      {`[]`, none},
		"a path that is long": {`{"code":"HPL12001E","path":"` + strings.Repeat("/a", 129) + `"}`, none},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			if got := hpl.From(ReadRefusal([]byte(tt.out), "HPL11001E", "the contract was refused without a reason")).Line(); got != tt.want {
				t.Errorf("got  %s\nwant %s", got, tt.want)
			}
		})
	}
}
