// Command walls runs inside a container of a guest, tries to leave it in every
// way that it knows, and serves what came of each try as one JSON object,
// attack → name of the error, "" for success:
//
//	walls serve PORT ATTACKS…   tries, then serves on the port
//	walls try ATTACKS…          tries, then prints the object in one line
//
// What must fail and how is the scenario's to say (test/hardening_test.go).
// Attacks named "may …" are uses that a privileged container keeps.
package main
