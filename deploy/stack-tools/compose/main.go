// Loads a compose file as `docker compose config` does, with the same loader, and prints the project
// as JSON: variables put in, profiles applied, every key and reference checked. No engine is asked.
//
//	compose-config -env-file versions.env -env-file .env -profile full docker-compose.yml
package main

import (
	"context"
	"flag"
	"fmt"
	"os"

	"github.com/compose-spec/compose-go/v2/cli"
)

type list []string

func (l *list) String() string     { return fmt.Sprint([]string(*l)) }
func (l *list) Set(v string) error { *l = append(*l, v); return nil }

func main() {
	var envFiles, profiles list
	flag.Var(&envFiles, "env-file", "file of variables; may be repeated, the last one wins")
	flag.Var(&profiles, "profile", "profile to activate besides COMPOSE_PROFILES; may be repeated")
	flag.Parse()
	if err := run(envFiles, profiles, flag.Args()); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

// run prints the project of the given compose files.
func run(envFiles, profiles, files []string) error {
	options, err := cli.NewProjectOptions(
		files,
		cli.WithOsEnv,
		cli.WithEnvFiles(envFiles...),
		cli.WithDotEnv,
		cli.WithDefaultProfiles(profiles...),
	)
	if err != nil {
		return err
	}
	project, err := options.LoadProject(context.Background())
	if err != nil {
		return err
	}
	printed, err := project.MarshalJSON()
	if err != nil {
		return err
	}
	_, err = fmt.Println(string(printed))
	return err
}
