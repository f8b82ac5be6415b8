//! The databases that servers share, each on a node of its own: PostgreSQL and MariaDB as Debian packages them, NATS where `NATS_SERVER`
//! names it (`cargo xtask components nats-server` builds it).

use std::{env, fmt, fs};

use crate::{Node, PATIENCE};

/// What is on the node that has the database, beside its programs.
const DATA: &str = "/var/lib/database";

/// MariaDB's own.
const SETTINGS: &str = "/var/lib/database.cnf";
/// Its log apart from its tables, as PostgreSQL's: when that cannot be written, a database ends.
const MARIADB: &str = "
[mariadbd]
user = nobody
datadir = /var/lib/database/files
innodb_data_home_dir = /var/lib/database/wal
innodb_log_group_home_dir = /var/lib/database/wal
innodb_log_file_size = 16M
socket = /tmp/mariadb.sock
bind_address = 0.0.0.0
skip_name_resolve
";

/// A database that servers can share.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Database {
    /// PostgreSQL.
    Postgres,
    /// MariaDB.
    MariaDb,
    /// NATS with JetStream.
    Nats,
}

impl Database {
    /// The password of the user `k3s`.
    pub const PASSWORD: &str = "hunter2";

    /// Lays an empty database server on a node, with a user `k3s` and no database of that name.
    pub fn install(self, node: &Node) {
        let password = Self::PASSWORD;
        match self {
            Self::Postgres => node.succeed(&format!(
                "install -d -m 700 -o postgres {DATA}/files && install -d -m 700 -o postgres {DATA}/wal && cd /
                 as='setpriv --reuid=postgres --regid=postgres --clear-groups'
                 bin=$(ls -d /usr/lib/postgresql/*/bin | tail -n 1)
                 $as $bin/initdb -D {DATA}/files --waldir={DATA}/wal/files --auth-local=trust --auth-host=scram-sha-256 --no-sync
                 echo \"CREATE ROLE k3s LOGIN PASSWORD '{password}';\" | $as $bin/postgres --single -D {DATA}/files postgres
                 echo 'host all all 0.0.0.0/0 scram-sha-256' >> {DATA}/files/pg_hba.conf"
            )),
            Self::MariaDb => {
                node.write(SETTINGS, MARIADB);
                node.succeed(&format!(
                    "install -d -m 700 -o nobody {DATA}/files && install -d -m 700 -o nobody {DATA}/wal
                     mariadb-install-db --defaults-file={SETTINGS} --user=nobody --auth-root-authentication-method=normal --skip-test-db
                     {{ echo 'FLUSH PRIVILEGES;'
                        echo \"CREATE USER k3s@'%' IDENTIFIED BY '{password}';\"
                     }} | mariadbd --defaults-file={SETTINGS} --bootstrap"
                ))
            }
            Self::Nats => {
                let program = env::var("NATS_SERVER").expect("whoever needs NATS has looked for it");
                fs::copy(program, node.path("/opt/nats-server")).expect("NATS_SERVER names a program");
                String::new()
            }
        };
    }

    /// Starts it, on the files that an earlier start has left.
    pub fn start(self, node: &Node) {
        let password = Self::PASSWORD;
        node.background(&match self {
            Self::Postgres => format!(
                "cd / && exec setpriv --reuid=postgres --regid=postgres --clear-groups \
                 $(ls -d /usr/lib/postgresql/*/bin | tail -n 1)/postgres -D {DATA}/files -k /tmp -h 0.0.0.0"
            ),
            Self::MariaDb => format!("exec mariadbd --defaults-file={SETTINGS}"),
            Self::Nats => {
                format!("exec /opt/nats-server -js -sd {DATA} -a 0.0.0.0 --user k3s --pass {password}")
            }
        });
        node.wait_for_open_port(self.port(), PATIENCE);
    }

    /// Kills it, as when its machine has no memory left.
    pub fn kill(self, node: &Node) {
        let name = self.program();
        node.succeed(&format!("pkill -9 -x {name}; while pgrep -x {name}; do sleep 0.1; done"));
    }

    /// Sends a signal to each of its processes.
    pub fn signal(self, node: &Node, signal: &str) {
        node.succeed(&format!("pkill -{signal} -x {}", self.program()));
    }

    /// Makes the database, for the user `k3s`.
    pub fn create_database(self, node: &Node) {
        match self {
            Self::Postgres => self.execute(node, "CREATE DATABASE k3s OWNER k3s"),
            Self::MariaDb => self.execute(node, "CREATE DATABASE k3s; GRANT ALL ON k3s.* TO k3s@'%'"),
            // A bucket is made by who uses it.
            Self::Nats => {}
        }
    }

    /// Makes `password` that of the user `k3s`.
    pub fn set_password(self, node: &Node, password: &str) {
        match self {
            Self::Postgres => self.execute(node, &format!("ALTER ROLE k3s PASSWORD '{password}'")),
            Self::MariaDb => self.execute(node, &format!("SET PASSWORD FOR k3s@'%' = PASSWORD('{password}')")),
            Self::Nats => unreachable!("its passwords are in its configuration"),
        }
    }

    /// Takes no writes any more, as a replica; or takes them again.
    pub fn set_read_only(self, node: &Node, is_read_only: bool) {
        match self {
            Self::Postgres => self.execute(
                node,
                &format!("ALTER SYSTEM SET default_transaction_read_only = {is_read_only}; SELECT pg_reload_conf()"),
            ),
            Self::MariaDb => self.execute(node, &format!("SET GLOBAL read_only = {is_read_only}")),
            Self::Nats => unreachable!("it has no replicas that take no writes"),
        }
    }

    /// Puts the files, but for the log that is written ahead, on a file system of so many MB.
    pub fn limit_disk(self, node: &Node, megabytes: u32) {
        node.succeed(&format!("mkdir -p {DATA}/files && mount -t tmpfs -o size={megabytes}M database {DATA}/files"));
    }

    /// Fills that file system to its last byte.
    pub fn fill_disk(self, node: &Node) {
        node.execute(&format!("cat /dev/zero > {DATA}/files/filler"));
    }

    /// Frees what [`Database::fill_disk`] took.
    pub fn free_disk(self, node: &Node) {
        node.succeed(&format!("rm {DATA}/files/filler"));
    }

    /// What servers are given as `--datastore-endpoint`.
    pub fn endpoint(self, node: &Node) -> String {
        let (address, port, password) = (node.address(), self.port(), Self::PASSWORD);
        match self {
            Self::Postgres => format!("postgres://k3s:{password}@{address}:{port}/k3s?sslmode=disable"),
            Self::MariaDb => format!("mysql://k3s:{password}@tcp({address}:{port})/k3s"),
            Self::Nats => format!("nats://k3s:{password}@{address}:{port}"),
        }
    }

    fn program(self) -> &'static str {
        match self {
            Self::Postgres => "postgres",
            Self::MariaDb => "mariadbd",
            Self::Nats => "nats-server",
        }
    }

    fn port(self) -> u16 {
        match self {
            Self::Postgres => 5432,
            Self::MariaDb => 3306,
            Self::Nats => 4222,
        }
    }

    fn execute(self, node: &Node, sql: &str) {
        let client = match self {
            Self::Postgres => "psql -q -v ON_ERROR_STOP=1 -h /tmp -U postgres postgres",
            Self::MariaDb => "mariadb --no-defaults -u root -S /tmp/mariadb.sock",
            Self::Nats => unreachable!("it has no SQL"),
        };
        // Each statement by itself: PostgreSQL takes these in no transaction.
        let statements = sql.replace("; ", ";\n");
        node.succeed(&format!("{client} <<'END'\n{statements};\nEND"));
    }
}

impl fmt::Display for Database {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Postgres => "PostgreSQL",
            Self::MariaDb => "MariaDB",
            Self::Nats => "NATS",
        })
    }
}
