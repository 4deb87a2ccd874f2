//! Constant load that counts: every reply's status and body are checked, and each client sees
//! whether it steps back to an older version.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

/// What came of the requests.
#[derive(Clone, Debug, Default)]
pub struct Counts {
    pub sent: usize,
    /// Bad status, bad body, reset or time-out; the first few in words.
    pub failed: Vec<String>,
    /// A client saw an older version after a newer one.
    pub back_steps: usize,
    /// Versions in the order in which they first appeared.
    pub versions: Vec<u64>,
    /// Hosts that answered, as the pages say.
    pub hosts: std::collections::BTreeSet<String>,
}

/// A running load.
pub struct Load {
    stop: Arc<AtomicBool>,
    thread: std::thread::JoinHandle<Counts>,
}

/// Sends one request each `period` (half of them over new connections) until told to stop.
/// Pages must answer 200 with `version N from HOST`.
pub fn start(port: u16, host: &str, path: &str, period: Duration) -> Load {
    let stop = Arc::new(AtomicBool::new(false));
    let (flag, host, url) = (
        stop.clone(),
        host.to_owned(),
        format!("http://127.0.0.1:{port}{path}"),
    );
    let thread = std::thread::spawn(move || {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .unwrap();
        runtime.block_on(async move {
            // The second keeps no connection, so that each of its requests makes one.
            let (kept, fresh) = (crate::http::client(8), crate::http::client(0));
            let mut counts = Counts::default();
            let mut waiting = tokio::task::JoinSet::new();
            let mut tick = tokio::time::interval(period);
            let mut newest = 0;
            let mut cookie: Option<String> = None;
            while !flag.load(Ordering::Relaxed) || !waiting.is_empty() {
                tokio::select! {
                    _ = tick.tick(), if !flag.load(Ordering::Relaxed) => {
                        counts.sent += 1;
                        let client = if counts.sent.is_multiple_of(2) { &fresh } else { &kept };
                        let mut request = client.get(&url).header("Host", &host);
                        if let Some(cookie) = &cookie {
                            request = request.header("Cookie", cookie);
                        }
                        let seen = newest;
                        waiting.spawn(async move {
                            let answer = request.send().await.map_err(|e| format!("{e:?}"))?;
                            let status = answer.status();
                            let given = answer.headers().get_all("set-cookie").iter();
                            let given = given.filter_map(|c| c.to_str().ok()).find(|c| c.starts_with("conpaas-release="));
                            let given = given.and_then(|c| c.split(';').next()).map(str::to_owned);
                            let body = answer.text().await.map_err(|e| format!("{e:?}"))?;
                            if status != 200 { return Err(format!("{status}: {}", body.chars().take(200).collect::<String>())); }
                            let mut words = body.split(' ');
                            match (words.next(), words.next().and_then(|v| v.parse::<u64>().ok()), words.next(), words.next()) {
                                (Some("version"), Some(version), Some("from"), Some(host)) => Ok((version, host.to_owned(), seen, given)),
                                _ => Err(format!("bad body: {body}")),
                            }
                        });
                    }
                    Some(done) = waiting.join_next() => match done.unwrap() {
                        Ok((version, host, seen_at_start, given)) => {
                            // As a browser does: several proxies know by it which release was seen.
                            if given.is_some() { cookie = given; }
                            // Only what had been seen before the request began can be stepped back from.
                            if version < seen_at_start { counts.back_steps += 1; }
                            if !counts.versions.contains(&version) { counts.versions.push(version); }
                            newest = newest.max(version);
                            counts.hosts.insert(host);
                        }
                        Err(reason) => counts.failed.push(reason),
                    },
                }
            }
            counts
        })
    });
    Load { stop, thread }
}

impl Load {
    /// Ends the load when all that was sent has been answered.
    pub fn finish(self) -> Counts {
        self.stop.store(true, Ordering::Relaxed);
        self.thread.join().unwrap()
    }
}
