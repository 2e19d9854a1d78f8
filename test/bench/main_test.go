package main

import (
	"strings"
	"testing"
)

func TestBudgetsAreHeld(t *testing.T) {
	ratio := func(v float64) *float64 { return &v }
	for name, tc := range map[string]struct {
		f    figure
		over bool
	}{
		"within, by ratio":        {figure{Name: "a", Value: 9, Ratio: ratio(1.02), most: 1.03}, false},
		"over, by ratio":          {figure{Name: "a", Value: 0, Ratio: ratio(1.04), most: 1.03}, true},
		"within, by value":        {figure{Name: "a", Value: 24e6, most: 25e6}, false},
		"over, by value":          {figure{Name: "a", Value: 26e6, most: 25e6}, true},
		"a figure without budget": {figure{Name: "a", Value: 1e9, Ratio: ratio(99)}, false},
	} {
		t.Run(name, func(t *testing.T) {
			err := overBudget([]figure{tc.f})
			if (err != nil) != tc.over || err != nil && !strings.Contains(err.Error(), "over its budget: a: ") {
				t.Errorf("got %v", err)
			}
		})
	}
}
