//! Both ends of a tunnel as programs of their own.

use std::{
    fs,
    io::{BufRead as _, BufReader},
    net::{SocketAddr, TcpListener, TcpStream},
    path::PathBuf,
    process::{Child, ChildStdout, Command, Stdio},
    time::Duration,
};

use anyhow::{Context, Result, ensure};
use nix::unistd::{SysconfVar, sysconf};

/// What an end is made of.
#[derive(Debug, Clone)]
pub struct Program {
    /// For those who read of it.
    pub name: &'static str,
    /// Where it is.
    pub path: PathBuf,
}

/// A tunnel between two processes, and what it leads to. Dropping it ends both.
#[derive(Debug)]
pub struct Tunnel {
    /// Where tunnels are opened, and from where connections are.
    pub server: End,
    /// Where connections lead to.
    pub client: End,
    entry: SocketAddr,
    target: TcpListener,
}

/// One end's process.
#[derive(Debug)]
pub struct End {
    program: &'static str,
    process: Child,
    output: BufReader<ChildStdout>,
}

impl Tunnel {
    /// A tunnel with these ends that leads to us.
    ///
    /// # Errors
    /// A program does not start, or the tunnel does not open.
    pub fn start(server: &Program, client: &Program) -> Result<Self> {
        let target = TcpListener::bind("127.0.0.1:0")?;
        let address = target.local_addr()?.to_string();
        let mut server = End::start(server, ["server", &address])?;
        let websockets = server.line()?;
        let client = End::start(client, ["client", &websockets, &address])?;
        let entry = server.line()?.parse().context("The server prints no address")?;
        Ok(Self { server, client, entry, target })
    }

    /// A connection through the tunnel: its end at the server, and its end at the node.
    ///
    /// # Errors
    /// It is not there in time.
    pub fn connect(&self) -> Result<(TcpStream, TcpStream)> {
        let here = TcpStream::connect(self.entry)?;
        let (there, _) = self.target.accept()?;
        for stream in [&here, &there] {
            stream.set_nodelay(true)?;
        }
        Ok((here, there))
    }

    /// From now on the node refuses connections. Returns one that is about to be refused.
    ///
    /// # Errors
    /// The server does not take it.
    pub fn connect_to_nothing(self) -> Result<(TcpStream, [End; 2])> {
        drop(self.target);
        Ok((TcpStream::connect(self.entry)?, [self.server, self.client]))
    }
}

impl End {
    fn start<const N: usize>(program: &Program, arguments: [&str; N]) -> Result<Self> {
        let mut process = Command::new(&program.path)
            .args(arguments)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .with_context(|| format!("Cannot run {}", program.path.display()))?;
        let output = BufReader::new(process.stdout.take().expect("it was piped"));
        Ok(Self { program: program.name, process, output })
    }

    /// What it is made of.
    pub fn program(&self) -> &'static str {
        self.program
    }

    fn line(&mut self) -> Result<String> {
        let mut line = String::new();
        ensure!(self.output.read_line(&mut line)? > 0, "An end of the tunnel has ended");
        Ok(line.trim_end().to_owned())
    }

    /// The most memory that it ever held, bytes.
    ///
    /// # Errors
    /// The process has ended.
    pub fn peak_memory(&self) -> Result<u64> {
        let status = fs::read_to_string(format!("/proc/{}/status", self.process.id()))?;
        let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).context("It has ended")?;
        let kilobytes: u64 = line.trim().trim_end_matches("kB").trim().parse()?;
        Ok(kilobytes << 10)
    }

    /// Processor time that it has taken.
    ///
    /// # Errors
    /// The process has ended.
    pub fn cpu(&self) -> Result<Duration> {
        let stat = fs::read_to_string(format!("/proc/{}/stat", self.process.id()))?;
        // The name, in parentheses, may hold anything.
        let (_, fields) = stat.rsplit_once(')').context("It has no name")?;
        let fields: Vec<&str> = fields.split_whitespace().collect();
        let ticks: u64 = fields[11..13].iter().map(|field| field.parse::<u64>()).sum::<Result<_, _>>()?;
        let a_second = sysconf(SysconfVar::CLK_TCK)?.context("The system tells no length of its ticks")?;
        Ok(Duration::from_secs_f64(ticks as f64 / a_second as f64))
    }
}

impl Drop for End {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}
