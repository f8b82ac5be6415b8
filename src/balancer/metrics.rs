//! What the balancer tells of itself, under k3s' names.

use std::{
    fmt,
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant},
};

use prometheus_client::{
    collector::Collector,
    encoding::{DescriptorEncoder, EncodeMetric},
    metrics::{MetricType, family::Family, gauge::ConstGauge, histogram::Histogram},
    registry::Registry,
};

use crate::Pool;

/// Bounds in seconds: a millisecond, doubled fourteen times.
const FIRST_BOUND: f64 = 0.001;
const BOUNDS: i32 = 15;

type Labels = [(&'static str, String); 2];

/// How long dials took, by how they ended.
#[derive(Debug, Clone)]
pub(crate) struct DialDurations(Family<Labels, Histogram, fn() -> Histogram>);

impl Default for DialDurations {
    fn default() -> Self {
        Self(Family::new_with_constructor(|| Histogram::new((0..BOUNDS).map(|n| FIRST_BOUND * 2_f64.powi(n)))))
    }
}

impl DialDurations {
    pub(crate) fn observe(&self, balancer: &str, duration: Duration, succeeded: bool) {
        let status = if succeeded { "success" } else { "error" };
        let labels = [("name", balancer.to_owned()), ("status", status.to_owned())];
        self.0.get_or_create(&labels).observe(duration.as_secs_f64());
    }

    pub(crate) fn register(&self, registry: &mut Registry) {
        let help = "Time that a dial of a server took, in seconds";
        registry.register("k3s_loadbalancer_dial_duration_seconds", help, self.0.clone());
    }
}

/// The servers, looked up when somebody asks.
#[derive(Debug)]
pub(crate) struct Servers {
    pub(crate) name: Arc<str>,
    pub(crate) pool: Arc<Mutex<Pool>>,
}

impl Collector for Servers {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> fmt::Result {
        let servers = self.pool.lock().unwrap_or_else(PoisonError::into_inner).snapshot(Instant::now());
        let states = servers.iter().map(|server| (server.address.to_string(), server.state as u64));
        let help = "How a server does, from 1 (failed) to 7 (in use)";
        self.gauges(&mut encoder, "k3s_loadbalancer_server_health", help, states)?;
        let connections = servers.iter().map(|server| (server.address.to_string(), server.connections as u64));
        let help = "Open connections to a server";
        self.gauges(&mut encoder, "k3s_loadbalancer_server_connections", help, connections)
    }
}

impl Servers {
    fn gauges(
        &self,
        encoder: &mut DescriptorEncoder<'_>,
        name: &str,
        help: &str,
        values: impl Iterator<Item = (String, u64)>,
    ) -> fmt::Result {
        let mut family = encoder.encode_descriptor(name, help, None, MetricType::Gauge)?;
        for (server, value) in values {
            let labels = [("name", self.name.as_ref()), ("server", server.as_str())];
            ConstGauge::new(value).encode(family.encode_family(&labels)?)?;
        }
        Ok(())
    }
}
