package main

import (
	"fmt"
	"runtime"
	"runtime/debug"

	"github.com/spf13/cobra"

	"reconciler/spec"
)

// version is set when the binary is linked; else the build's own account is used.
var version string

func (a *app) versionCmd() *cobra.Command {
	return &cobra.Command{
		Use:     "version",
		Short:   "Print the version",
		Long:    `version prints the version of this binary, of the language of the specs and of Go.`,
		Example: `  reconciler version -o json`,
		Args:    noArgs,
		Annotations: map[string]string{
			formatsKey: "text, json, yaml",
		},
		RunE: func(*cobra.Command, []string) error {
			v := versionInfo{Version: buildVersion(), APIVersion: spec.APIVersion, Go: runtime.Version(), Platform: runtime.GOOS + "/" + runtime.GOARCH}
			if a.flags.output != "text" {
				return printData(a.stdout, a.flags.output, v)
			}
			_, err := fmt.Fprintf(a.stdout, "reconciler %s, specs %s, %s %s\n", v.Version, v.APIVersion, v.Go, v.Platform)
			return err
		},
	}
}

type versionInfo struct {
	Version    string `json:"version"`
	APIVersion string `json:"apiVersion"`
	Go         string `json:"go"`
	Platform   string `json:"platform"`
}

func buildVersion() string {
	if version != "" {
		return version
	}
	if info, ok := debug.ReadBuildInfo(); ok && info.Main.Version != "" && info.Main.Version != "(devel)" {
		return info.Main.Version
	}
	return "devel"
}
