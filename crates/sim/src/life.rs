//! What people wish, and what follows when nodes are gone: generations, operations, the life of
//! the application. Operations are judged by the core's rules.

use crate::bugs::Bug;
use crate::schedule::{Ms, Wish};
use crate::store::{Operation, Outcome, Previous, Service, release};
use crate::truth::Wished;
use crate::types;
use crate::world::{DRAIN_SECONDS, World};
use conpaas_core::broker::NodeKey;
use conpaas_core::operation::{Goal, Standing, Target, Verdict, judge};
use conpaas_core::plan::{node_count, replaced_at_once};
use conpaas_model::ids::{Generation, ReleaseNumber};
use conpaas_model::spec::RunWish;
use conpaas_model::status::NodeState;
use std::collections::BTreeSet;

/// How long an operation may take before it counts as failed.
pub const DEADLINE: Ms = 40_000;
/// How long a deleted service's manager may take beyond draining.
const DELETE_GRACE: u64 = 8_000;

impl World {
    /// The first wish of all.
    pub fn start_application(&mut self) {
        self.director.up = true;
        self.wish_run("start", RunWish::Running);
        self.director.up = false;
    }

    /// A person wishes something. What cannot be is refused, as the API would.
    pub fn wish(&mut self, wish: &Wish) {
        let done = match wish {
            Wish::Scale { role, count } => self.scale(*role, *count),
            Wish::Activate | Wish::Settings => self.new_release(wish.kind()),
            Wish::Rollback => self.new_release("rollback"),
            Wish::Stop => self.wish_run("stop", RunWish::Stopped),
            Wish::Start => self.wish_run("start", RunWish::Running),
            Wish::Replace { pick } => self.replace(*pick),
            Wish::Cancel => self.cancel(),
            Wish::Delete => self.wish_run("delete", RunWish::Deleted),
        };
        self.stats.wish(wish.kind(), done.is_some());
        self.wake();
    }

    /// Writes a new wish as a generation with its operation; nothing when it is refused.
    fn change(
        &mut self,
        kind: &'static str,
        app: Option<RunWish>,
        retire: Option<BTreeSet<NodeKey>>,
        change: impl FnOnce(&mut Service),
    ) -> Option<()> {
        if !self.can_write() {
            return None;
        }
        let app_before = self.director.store.app?;
        if app_before == RunWish::Deleted {
            return None;
        }
        let before = self.web()?.clone();
        if before.run == RunWish::Deleted {
            return None;
        }
        let mut after = before.clone();
        change(&mut after);
        let wall = self.wall();
        if after.run != before.run {
            after.run_since = wall;
        }
        let nodes = |service: &Service| match service.run {
            RunWish::Running => node_count(types::by_name(service.service_type), &service.roles),
            _ => 0,
        };
        // The manager's own node counts, too.
        let retire_before = self.to_retire();
        let retire = retire.unwrap_or_else(|| retire_before.clone());
        // For a while, one that is replaced and the one in its stead are both there.
        let replaced = |service: &Service, retire: &BTreeSet<NodeKey>| match service.run {
            RunWish::Running => retire.len().min(replaced_at_once(nodes(service))),
            _ => 0,
        };
        let had = nodes(&before) + 1 + replaced(&before, &retire_before);
        let needs = nodes(&after) + 1 + replaced(&after, &retire);
        if needs > had && needs > self.director.quota as usize {
            return None;
        }
        if self
            .web()?
            .status
            .as_ref()
            .is_some_and(|status| !status.reached)
        {
            self.stats.state("a wish in the middle of another");
        }
        after.generation = before.generation.next();
        self.truth.wished.push(Wished {
            until: self.now,
            run: before.run,
            roles: before.roles.clone(),
            active: before.active,
        });
        self.director.store.operations.push(Operation {
            kind,
            generation: Some(after.generation),
            previous: Previous {
                app: app_before,
                run: before.run,
                roles: before.roles,
                active: before.active,
                retire: retire_before,
            },
            deadline: wall + DEADLINE,
            begun: self.now,
            outcome: Outcome::Running,
        });
        self.director.store.services.insert(after.id.clone(), after);
        for (key, place) in &mut self.director.store.places {
            place.retire = retire.contains(key);
        }
        if let Some(app) = app {
            self.director.store.app = Some(app);
        }
        self.settle();
        Some(())
    }

    /// Nodes that people want replaced and that are still there.
    fn to_retire(&self) -> BTreeSet<NodeKey> {
        let store = &self.director.store;
        let places = store.places.iter();
        let retired = places.filter(|(key, place)| place.retire && key.service == self.names.web);
        retired.map(|(key, _)| key.clone()).collect()
    }

    fn wish_run(&mut self, kind: &'static str, run: RunWish) -> Option<()> {
        self.change(kind, Some(run), None, |service| service.run = run)
    }

    fn scale(&mut self, role: u64, count: u32) -> Option<()> {
        let with_nodes: Vec<&str> = self
            .service_type
            .roles()
            .iter()
            .filter(|r| self.service_type.auxiliary_role(r.name).is_none())
            .map(|r| r.name)
            .collect();
        let role = with_nodes[(role % with_nodes.len() as u64) as usize];
        if self.web()?.roles.get(role)?.count() == count {
            return None;
        }
        self.change("scale", None, None, |service| {
            if let Some(pool) = service
                .roles
                .get_mut(role)
                .and_then(|w| w.pools.first_mut())
            {
                pool.count = count;
            }
        })
    }

    fn new_release(&mut self, kind: &'static str) -> Option<()> {
        if kind == "rollback" && self.web()?.active.0 < 2 {
            return None;
        }
        self.change(kind, None, None, |service| {
            let number = ReleaseNumber(service.releases.len() as u64 + 1);
            service.releases.push(release(number));
            service.active = number;
        })
    }

    fn replace(&mut self, pick: u64) -> Option<()> {
        if !self.can_write() {
            return None;
        }
        let store = &self.director.store;
        let up = |n: &&conpaas_core::broker::NodeRow| n.wanted && n.state == NodeState::Up;
        let all: Vec<_> = store
            .nodes_of(&self.names.web)
            .filter(up)
            .map(|n| n.key.clone())
            .collect();
        let key = all.get((pick % (all.len() as u64).max(1)) as usize)?;
        let mut retire = self.to_retire();
        if pick % 7 == 6 {
            // All that are there, as when they are made of an older image.
            retire.extend(all.iter().cloned());
            return self.change("upgrade", None, Some(retire), |_| {});
        }
        retire.insert(key.clone());
        self.change("replace", None, Some(retire), |_| {})
    }

    fn cancel(&mut self) -> Option<()> {
        if !self.can_write() {
            return None;
        }
        let running = |op: &&mut Operation| op.outcome == Outcome::Running && op.kind != "delete";
        let operation = self
            .director
            .store
            .operations
            .iter_mut()
            .rev()
            .find(running)?;
        operation.outcome = Outcome::Cancelled;
        self.truth.cancelled = true;
        let previous = operation.previous.clone();
        let retire = Some(previous.retire.clone());
        self.change("cancel", Some(previous.app), retire, |service| {
            service.run = previous.run;
            service.roles = previous.roles;
            service.active = previous.active;
        })
    }

    /// Draws all conclusions from what is recorded; repeating it changes nothing.
    pub fn settle(&mut self) {
        let wall = self.wall();
        let ids = [self.names.web.clone(), self.names.system.clone()];
        let mut changed = false;
        for id in &ids {
            let store = &self.director.store;
            let Some(service) = store.services.get(id).filter(|s| s.run != RunWish::Running) else {
                continue;
            };
            let (run, since, internal) = (service.run, service.run_since, service.internal);
            let nodes = store.nodes_of(id).count();
            let empty = nodes == 0 && !store.machines.iter().any(|m| m.node.service == *id);
            if empty && run == RunWish::Deleted {
                self.director.store.services.remove(id);
                changed = true;
            } else if empty {
                if let Some(service) = self.service(id)
                    && (service.reached < service.generation || service.status.is_some())
                {
                    service.reached = service.generation;
                    service.status = None;
                    changed = true;
                }
            } else if run == RunWish::Deleted && nodes > 0 {
                let grace = u64::from(DRAIN_SECONDS) * 1_000 + DELETE_GRACE;
                if internal || since + grace < wall {
                    let store = &mut self.director.store;
                    let keys: Vec<_> = store.nodes_of(id).map(|n| n.key.clone()).collect();
                    for key in keys {
                        changed |= store.wish_gone(&key);
                    }
                }
            }
        }
        changed |= self.settle_system();
        if self.director.store.app == Some(RunWish::Deleted)
            && self.director.store.services.is_empty()
        {
            self.director.store.app = None;
            changed = true;
        }
        changed |= self.judge_running();
        self.close_removed();
        if changed {
            self.wake();
        }
    }

    /// Managers are there while anything they manage runs or is not yet gone.
    fn settle_system(&mut self) -> bool {
        let store = &self.director.store;
        let Some(app) = store.app else { return false };
        let needed = store.services.get(&self.names.web).is_some_and(|web| {
            web.run == RunWish::Running || store.nodes_of(&web.id).next().is_some()
        });
        let wish = if needed { RunWish::Running } else { app };
        let (id, wall) = (self.names.system.clone(), self.wall());
        match self.service(&id) {
            Some(system) if system.run != wish && system.run != RunWish::Deleted => {
                system.run = wish;
                system.run_since = wall;
                system.generation = system.generation.next();
                true
            }
            _ => false,
        }
    }

    /// Ends every operation that has come to its end.
    pub fn judge_running(&mut self) -> bool {
        let wall = self.wall();
        let mut ended = false;
        for index in 0..self.director.store.operations.len() {
            let store = &self.director.store;
            let operation = &store.operations[index];
            if operation.outcome != Outcome::Running {
                continue;
            }
            let verdict = judge(&self.targets(operation), wall > operation.deadline);
            let outcome = match verdict {
                Verdict::Running => continue,
                Verdict::Done => Outcome::Done,
                Verdict::Failed(_) => Outcome::Failed,
                Verdict::Superseded => Outcome::Superseded,
            };
            let (kind, generation) = (operation.kind, operation.generation);
            self.director.store.operations[index].outcome = outcome;
            self.stats.outcome(kind, outcome);
            self.operation_ended(kind, generation, outcome);
            ended = true;
        }
        ended
    }

    fn targets(&self, operation: &Operation) -> Vec<Target<'_>> {
        let store = &self.director.store;
        let standing = |service: &'_ conpaas_model::ids::ServiceId| {
            store.services.get(service).map(|row| Standing {
                generation: row.generation,
                reached: if self.has(Bug::DoneTooEarly) {
                    row.generation
                } else {
                    row.reached
                },
                status: row.status.as_ref(),
                unmanaged: None,
            })
        };
        let removed = operation.kind == "delete";
        let goal = if removed {
            Goal::Removed
        } else {
            Goal::Reached
        };
        let mut targets = Vec::new();
        if let Some(generation) = operation.generation {
            targets.push(Target {
                service: "web",
                generation,
                goal,
                now: standing(&self.names.web),
            });
        }
        if operation.kind == "stop"
            && let Some(system) = store.services.get(&self.names.system)
        {
            targets.push(Target {
                service: "system",
                generation: system.generation,
                goal,
                now: standing(&self.names.system),
            });
        }
        if removed && store.app.is_some() {
            let none = Standing {
                generation: Generation(0),
                reached: Generation(0),
                status: None,
                unmanaged: None,
            };
            targets.push(Target {
                service: "the application",
                generation: Generation(0),
                goal,
                now: Some(none),
            });
        }
        targets
    }
}
