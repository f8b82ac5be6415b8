// Package endpoint stands in for kine's list of drivers: those of the databases that k3s lets kine serve, and SQLite's, since
// k3s is tested beside kine on SQLite. What it leaves out is nearly half of kine: t4 alone brings Pebble and a client of S3.
package endpoint

import (
	_ "github.com/k3s-io/kine/pkg/drivers/mysql"
	_ "github.com/k3s-io/kine/pkg/drivers/nats"
	_ "github.com/k3s-io/kine/pkg/drivers/pgsql"
	_ "github.com/k3s-io/kine/pkg/drivers/sqlite"
)
