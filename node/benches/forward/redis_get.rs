//! Redis, asked by its own benchmark: GET of as long a value, without pipelining and without TLS.

use std::net::{TcpListener, TcpStream};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use super::BODY;
use super::figures::Figures;

/// How long its server may take to listen.
const START: Duration = Duration::from_secs(5);

pub(crate) struct Redis {
    server: Child,
    port: u16,
}

impl Redis {
    /// A server of its own on a free port; `None` where Redis is missing.
    pub(crate) fn start() -> Option<Self> {
        let port = TcpListener::bind("127.0.0.1:0").ok()?.local_addr().ok()?.port();
        let server = Command::new("redis-server")
            .args(["--bind", "127.0.0.1", "--port", &port.to_string(), "--save", "", "--appendonly", "no"])
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .ok()?;
        let redis = Self { server, port };
        // Its benchmark never ends if nobody listens.
        let begun = Instant::now();
        while TcpStream::connect(("127.0.0.1", port)).is_err() {
            if begun.elapsed() > START {
                return None;
            }
            std::thread::yield_now();
        }
        // A value to get.
        redis.benchmark("set", 1, 1).map(|_| redis)
    }

    pub(crate) fn measure(&self, in_flight: usize, span: Duration) -> Figures {
        // It counts requests, not seconds; about as many as it answers in that time.
        let guess = if in_flight == 1 { 20_000.0 } else { 66_000.0 };
        self.benchmark("get", in_flight, (guess * span.as_secs_f64()) as usize).expect("Redis answers")
    }

    /// What `redis-benchmark` says of `requests` of one kind over `in_flight` connections.
    fn benchmark(&self, kind: &str, in_flight: usize, requests: usize) -> Option<Figures> {
        let [port, size, in_flight, requests] =
            [usize::from(self.port), BODY, in_flight, requests].map(|number| number.to_string());
        let ran = Command::new("redis-benchmark")
            .args(["-p", &port, "-t", kind, "-c", &in_flight, "-n", &requests, "-d", &size, "--csv"])
            .output()
            .ok()?;
        let said = String::from_utf8(ran.stdout).ok()?;
        // "test","rps","avg_latency_ms","min_latency_ms","p50_latency_ms","p95_latency_ms","p99_latency_ms",...
        let row = said.lines().find(|line| line.starts_with(&format!("\"{}\"", kind.to_uppercase())))?;
        let figures: Vec<f64> =
            row.split(',').skip(1).filter_map(|field| field.trim_matches('"').parse().ok()).collect();
        Some(Figures {
            per_second: *figures.first()?,
            p50_us: figures.get(3).map(|ms| ms * 1e3),
            p99_us: figures.get(5).map(|ms| ms * 1e3),
            cpu_us: None,
        })
    }
}

impl Drop for Redis {
    fn drop(&mut self) {
        let _ = self.server.kill();
        let _ = self.server.wait();
    }
}
