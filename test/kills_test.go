//go:build vm

package test

import "hpcr/test/scenario"

var killScenarios []scenario.Scenario
