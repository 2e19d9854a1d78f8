package compose

import (
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

// observed are attributes whose effect a test of agent/workload sees in a real
// container.
var observed = map[string]string{
	"secrets":                                    "TestMounts",
	"secrets.*.environment":                      "TestMounts",
	"services":                                   "TestPullAndStart",
	"services.*.command":                         "TestPullAndStart",
	"services.*.depends_on":                      "TestDependencies",
	"services.*.depends_on.*.condition":          "TestDependencies",
	"services.*.environment":                     "TestPullAndStart",
	"services.*.extra_hosts":                     "TestMounts",
	"services.*.group_add":                       "TestMounts",
	"services.*.healthcheck":                     "TestDependencies",
	"services.*.healthcheck.interval":            "TestDependencies",
	"services.*.healthcheck.retries":             "TestFailedDependency",
	"services.*.healthcheck.test":                "TestDependencies",
	"services.*.hostname":                        "TestMounts",
	"services.*.image":                           "TestPullAndStart",
	"services.*.logging":                         "TestOutput",
	"services.*.logging.driver":                  "TestOutput",
	"services.*.network_mode":                    "TestNetworks",
	"services.*.privileged":                      "TestContainerCannot",
	"services.*.read_only":                       "TestMounts",
	"services.*.restart":                         "TestRestartPolicies",
	"services.*.secrets":                         "TestMounts",
	"services.*.secrets.#.mode":                  "TestMounts",
	"services.*.secrets.#.source":                "TestMounts",
	"services.*.secrets.#.target":                "TestMounts",
	"services.*.secrets.#.uid":                   "TestMounts",
	"services.*.shm_size":                        "TestMounts",
	"services.*.stdin_open":                      "TestOutput",
	"services.*.stop_grace_period":               "TestStopInOrder",
	"services.*.stop_signal":                     "TestStopInOrder",
	"services.*.tmpfs":                           "TestMounts",
	"services.*.tty":                             "TestOutput",
	"services.*.user":                            "TestMounts",
	"services.*.volumes":                         "TestMounts",
	"services.*.volumes.#.bind":                  "TestMounts",
	"services.*.volumes.#.bind.create_host_path": "TestStartRefusals",
	"services.*.volumes.#.read_only":             "TestMounts",
	"services.*.volumes.#.source":                "TestMounts",
	"services.*.volumes.#.target":                "TestMounts",
	"services.*.volumes.#.type":                  "TestMounts",
	"volumes":                                    "TestMounts",
	"volumes.*.driver_opts":                      "TestVolumeInAFolder",
}

// docs/compose.md has each attribute of the schema once. It says works only of
// what a container was seen to see, by the test that observed names, and it says of what is refused what the guest says.
func TestComposeDocument(t *testing.T) {
	files, err := filepath.Glob("../../agent/workload/*_test.go")
	if err != nil {
		t.Fatal(err)
	}
	tests := ""
	for _, file := range files {
		text, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		tests += string(text)
	}
	for name, test := range observed {
		if !strings.Contains(tests, "\nfunc "+test+"(") {
			t.Errorf("there is no test %s to observe %s", test, name)
		}
	}
	text, err := os.ReadFile("../../docs/compose.md")
	if err != nil {
		t.Fatal(err)
	}
	rows := map[string]bool{}
	for line := range strings.Lines(string(text)) {
		cells := strings.Split(strings.TrimSuffix(line, " |\n"), " | ")
		if !strings.HasPrefix(line, "| `") || len(cells) != 3 {
			continue
		}
		name, status, what := strings.Trim(cells[0], "|` "), cells[1], cells[2]
		if rows[name] {
			t.Errorf("%s stands in the table twice", name)
		}
		rows[name] = true
		switch _, seen := observed[name]; {
		case (refused[name] != "") != (status == "refused"):
			t.Errorf("%s: the table says %s, the code does not", name, status)
		case status == "refused" && what != refused[name]:
			t.Errorf("%s: the table says %q, the guest %q", name, what, refused[name])
		case seen != (status == "works"):
			t.Errorf("%s: the table says %s, and observed is %v", name, status, seen)
		case !slices.Contains([]string{"works", "taken", "no effect", "refused"}, status):
			t.Errorf("%s: %q is none of the four words", name, status)
		}
	}
	if diff := cmp.Diff(schemaAttributes(t), rows); diff != "" {
		t.Errorf("(-schema +table) %s", diff)
	}
}
