//! Planted bugs: what could be wrong with the shells around the cores, done on purpose, so that a
//! test can prove that the simulator would find it. Nothing of this is in the shipped program's
//! paths: only worlds that are told to have a bug have it.

use crate::host::HostId;
use crate::net::Server;
use crate::world::World;
use conpaas_core::agent::Event as AgentEvent;
use conpaas_model::level::Level;
use conpaas_model::protocol::FromAgent;
use conpaas_model::status::Phase;

/// A bug that can be planted.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Bug {
    /// Agents report what drains as drained at once.
    NoDrain,
    /// Users say that they let go of providers before they do.
    UserRemovedAfterProvider,
    /// The wish for a machine is written down only when the cloud has answered.
    IntentAfterEffect,
    /// Agents obey levels older than one they have seen.
    StaleEpochObeyed,
    /// Agents go on saying that a role is ready when it is not any more.
    HealthFromThePast,
    /// A token admits any number of keys.
    TokenReusable,
    /// Two managers are in office at once and count levels of one epoch.
    TwoInOffice,
    /// The Director takes reports of managers that were outranked.
    FencingSkipped,
    QuotaUnchecked,
    /// The broker believes lists that were asked for before its last call.
    OldListsBelieved,
    /// What no record wants is not destroyed.
    OrphansKept,
    /// Agents do not keep their level.
    LevelNotKept,
    /// Machines are forgotten without being destroyed.
    DestroyForgotten,
    /// The edge confirms routes before it follows them.
    EdgeConfirmsEarly,
    /// Operations count as done when they are recorded.
    DoneTooEarly,
    /// Node numbers are given again.
    NumbersReused,
    /// Nodes that a manager does not mention are released.
    SilenceMeansGone,
    /// A new manager does not wait to hear from its nodes.
    PlansBeforeHearing,
    /// What starts is taken for ready.
    StartingIsReady,
}

impl Bug {
    pub const ALL: [Self; 19] = [
        Self::NoDrain,
        Self::UserRemovedAfterProvider,
        Self::IntentAfterEffect,
        Self::StaleEpochObeyed,
        Self::HealthFromThePast,
        Self::TokenReusable,
        Self::TwoInOffice,
        Self::FencingSkipped,
        Self::QuotaUnchecked,
        Self::OldListsBelieved,
        Self::OrphansKept,
        Self::LevelNotKept,
        Self::DestroyForgotten,
        Self::EdgeConfirmsEarly,
        Self::DoneTooEarly,
        Self::NumbersReused,
        Self::SilenceMeansGone,
        Self::PlansBeforeHearing,
        Self::StartingIsReady,
    ];
}

impl World {
    /// A level on its way from a manager to an agent.
    pub fn corrupt_level(&mut self, _of: Server, level: Level) -> Level {
        level
    }

    /// An agent's word on its way to a manager's core.
    pub fn corrupt_report(&mut self, mut message: FromAgent) -> FromAgent {
        let Some(bug) = self.bug else { return message };
        let FromAgent::Report(report) = &mut message else {
            return message;
        };
        if bug == Bug::UserRemovedAfterProvider
            && let Some(level) = &report.level
        {
            // As if everything were carried out the moment it is known.
            report.applied = Some(level.version);
            report.applied_roles = level
                .body
                .roles
                .keys()
                .map(|role| (role.clone(), level.version))
                .collect();
            for (role, status) in &mut report.roles {
                let providers = level.body.roles.get(role).map(|role| &role.providers);
                status.using.retain(|used| {
                    providers.is_some_and(|p| p.iter().any(|p| p.instance() == used.instance))
                });
            }
        }
        for status in report.roles.values_mut() {
            for phase in status.releases.values_mut().chain(&mut status.own) {
                match (bug, &*phase) {
                    (Bug::NoDrain, Phase::Draining) => *phase = Phase::Drained,
                    (Bug::StartingIsReady, Phase::Starting) => *phase = Phase::Ready,
                    _ => {}
                }
            }
            if bug == Bug::NoDrain {
                status.using.retain(|used| used.in_flight == 0);
            }
        }
        message
    }

    /// What a role's task tells its agent.
    pub fn corrupt_agent_event(&mut self, id: HostId, event: AgentEvent) -> AgentEvent {
        if !self.has(crate::bugs::Bug::HealthFromThePast) {
            return event;
        }
        let AgentEvent::Observed {
            role,
            version,
            mut status,
        } = event
        else {
            return event;
        };
        let node = self
            .hosts
            .get(&id)
            .map(|host| host.node.number)
            .unwrap_or_default();
        let ready_once = |release| {
            let instance = conpaas_model::level::Instance {
                role: role.clone(),
                node,
                release,
            };
            self.truth.last_ready.contains_key(&instance)
        };
        for (release, phase) in &mut status.releases {
            if *phase == Phase::Starting && ready_once(Some(*release)) {
                *phase = Phase::Ready;
            }
        }
        if status.own == Some(Phase::Starting) && ready_once(None) {
            status.own = Some(Phase::Ready);
        }
        AgentEvent::Observed {
            role,
            version,
            status,
        }
    }
}
