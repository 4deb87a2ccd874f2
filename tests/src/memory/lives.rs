//! Parties that can be killed: each has threads of its own, which all end at once where it is
//! told to die, as a killed process' do. Nothing is said good-bye to and nothing is cleaned up.

use conpaas_kill_points::{KillPoint, set_trap};
use std::cell::RefCell;
use std::future::Future;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, OnceLock};
use std::time::Duration;
use tokio::runtime::{Builder, Runtime};

/// One life of a party.
struct Life {
    dead: AtomicBool,
    /// Takes its threads away, and may start another life.
    ended: Box<dyn Fn() + Send + Sync>,
}

thread_local! {
    static LIFE: RefCell<Option<Arc<Life>>> = const { RefCell::new(None) };
}

/// What a thread of a dead party unwinds with.
struct Killed;

/// Where the next party is to die, and how often that place has been reached.
#[derive(Default)]
struct Aim {
    at: Option<(KillPoint, u64)>,
    met: u64,
}

fn aim() -> &'static Mutex<Aim> {
    static AIM: OnceLock<Mutex<Aim>> = OnceLock::new();
    AIM.get_or_init(|| {
        set_trap(Arc::new(trap));
        Mutex::default()
    })
}

/// Has whoever reaches a point for the `count`th time from now die there.
pub fn arm(point: KillPoint, count: u64) {
    let mut aim = aim().lock().unwrap();
    *aim = Aim {
        at: Some((point, count)),
        met: 0,
    };
}

/// Whether whoever was to die has died.
pub fn fired() -> bool {
    let aim = aim().lock().unwrap();
    aim.met > 0 && aim.at.is_none()
}

/// Nobody is to die any more; whether somebody did.
pub fn disarm() -> bool {
    let mut aim = aim().lock().unwrap();
    aim.met > 0 && aim.at.take().is_none()
}

fn trap(point: KillPoint) {
    let Some(life) = LIFE.with_borrow(Clone::clone) else {
        return;
    };
    if !life.dead.load(Ordering::Acquire) {
        let mut aim = aim().lock().unwrap();
        match &mut aim.at {
            Some((at, left)) if *at == point => {
                *left -= 1;
                if *left > 0 {
                    return;
                }
            }
            _ => return,
        }
        aim.at = None;
        aim.met += 1;
        drop(aim);
        life.dead.store(true, Ordering::Release);
        let ended = life.clone();
        std::thread::spawn(move || (ended.ended)());
    }
    // Without a word: it is no failure of the test.
    std::panic::resume_unwind(Box::new(Killed));
}

/// The threads of one party.
pub struct Threads {
    life: Arc<Life>,
    runtime: Option<Runtime>,
}

impl Threads {
    /// `ended` is called, on a thread of nobody's, when the party was killed at a point.
    pub fn new(count: usize, ended: impl Fn() + Send + Sync + 'static) -> Self {
        let life = Arc::new(Life {
            dead: AtomicBool::new(false),
            ended: Box::new(ended),
        });
        let of_thread = life.clone();
        let runtime = Builder::new_multi_thread()
            .worker_threads(count)
            .enable_all()
            .on_thread_start(move || LIFE.set(Some(of_thread.clone())))
            .build()
            .unwrap();
        Self {
            life,
            runtime: Some(runtime),
        }
    }

    pub fn spawn(&self, work: impl Future<Output = ()> + Send + 'static) {
        self.runtime.as_ref().unwrap().spawn(work);
    }

    /// Runs something among the party's threads and waits for it.
    pub fn run<T: Send + 'static>(
        &self,
        work: impl Future<Output = T> + Send + 'static,
    ) -> Result<T, &'static str> {
        let (answer, answered) = std::sync::mpsc::channel();
        self.spawn(async move {
            let _ = answer.send(work.await);
        });
        answered.recv().map_err(|_| "it died")
    }

    pub fn is_dead(&self) -> bool {
        self.life.dead.load(Ordering::Acquire)
    }

    /// Ends all threads where they are and waits until they are gone.
    pub fn kill(&mut self) {
        self.life.dead.store(true, Ordering::Release);
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_timeout(Duration::from_secs(10));
        }
    }
}

impl Drop for Threads {
    fn drop(&mut self) {
        self.life.dead.store(true, Ordering::Release);
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_background();
        }
    }
}
