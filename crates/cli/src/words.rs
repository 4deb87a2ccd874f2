//! Events in words: one function from what the Director states (kind, facts, reason, actor) to a
//! sentence for people. Nothing is asked here, and nothing is printed.

use crate::commands::plain;
use conpaas_model::egress::Egress;
use conpaas_model::event::{Event, EventKind, LeaveReason, RequestReason};
use conpaas_model::spec::RunWish;

/// Who acts when no person does.
const SYSTEM: &str = "system";

/// An event as a sentence, without its time.
pub fn sentence(event: &Event) -> String {
    let mut text = String::new();
    if let Some(service) = &event.service {
        text.push_str(&format!("{service}: "));
    }
    text.push_str(&what(&event.what));
    if let Some(reason) = &event.reason {
        text.push_str(&format!(": {reason}"));
    }
    if event.actor != SYSTEM {
        text.push_str(&format!(" (by {})", event.actor));
    }
    // Reasons come from clouds and daemons: a terminal must not obey them.
    text.chars()
        .map(|c| if c.is_control() { ' ' } else { c })
        .collect()
}

fn times(count: u64, one: &str) -> String {
    match count {
        1 => one.to_owned(),
        more => format!("{one}, {more} times"),
    }
}

fn in_all(times: u64, total: u64) -> String {
    if total > times {
        format!(" ({total} in all)")
    } else {
        String::new()
    }
}

fn pause(ms: u64) -> String {
    if ms < 1000 {
        format!("{ms} ms")
    } else {
        format!("{} s", ms / 1000)
    }
}

fn what(kind: &EventKind) -> String {
    match kind {
        EventKind::ApplicationCreated { name } => format!("application {name} was created"),
        EventKind::ApplicationTrashed { name } => {
            format!("{name} was deleted and rests in the trash")
        }
        EventKind::ApplicationRestored { name } => format!("{name} came back from the trash"),
        EventKind::EgressChanged {
            egress: Egress::None,
        } => "nothing of it gets out of its network any more".to_owned(),
        EventKind::EgressChanged {
            egress: Egress::Director,
        } => "it gets out of its network through the Director's machine".to_owned(),
        EventKind::ApplicationRenamed { from, to } => {
            format!("application {from} was renamed to {to}")
        }
        EventKind::ServiceAdded { service_type } => {
            format!("service of type {service_type} was added")
        }
        EventKind::ServiceRenamed { from, to } => format!("service {from} was renamed to {to}"),
        EventKind::ServiceDeleted {} => "the service is gone".to_owned(),
        EventKind::ServiceState { from, to } => format!("is {to} now, was {from}"),
        EventKind::ReleaseServed { release, before } => {
            let before = before.map(|before| format!(" instead of {before}"));
            let before = before.unwrap_or_default();
            format!("people are led to release {release}{before}")
        }
        EventKind::ReleaseRefused { release, serving } => {
            let serving = serving.map(|serving| format!("; {serving} goes on serving"));
            let serving = serving.unwrap_or_default();
            format!("release {release} does not come up, and nobody is led to it{serving}")
        }
        EventKind::ManagersWished { wish } => match wish {
            RunWish::Running => "managers are needed".to_owned(),
            RunWish::Stopped => "managers are not needed now".to_owned(),
            RunWish::Deleted => "managers are not needed any more".to_owned(),
        },
        EventKind::DomainAdded { domain } => format!("the host name {domain} leads here"),
        EventKind::DomainRemoved { domain } => {
            format!("the host name {domain} leads here no more")
        }
        EventKind::CodeUploaded {
            code,
            filename,
            files,
        } => format!("code {code} was uploaded from {filename} ({files} files)"),
        EventKind::OperationStarted { operation, kind } => format!("{kind} began ({operation})"),
        EventKind::OperationEnded {
            operation,
            kind,
            outcome,
        } => {
            let outcome = serde_json::to_value(outcome).unwrap_or_default();
            format!("{kind} ended as {} ({operation})", plain(&outcome))
        }
        EventKind::NodeReplaced { node } => format!("another node shall replace node {node}"),
        EventKind::NodeRequested {
            node,
            cloud,
            instance_type,
            because,
        } => {
            let place = match because {
                RequestReason::Count => String::new(),
                RequestReason::Replacement { replaces } => {
                    format!(" in the place of node {replaces}")
                }
            };
            format!("node {node} is wanted{place} ({instance_type} from {cloud})")
        }
        EventKind::NodeUp { node } => format!("node {node} is up"),
        // The reason is the signal in words.
        EventKind::NodeDied { node, .. } => format!("node {node} died"),
        EventKind::NodeLetGo { node, because } => {
            let because = match because {
                LeaveReason::Surplus => "it is not needed any more".to_owned(),
                LeaveReason::Replaced => "it is replaced".to_owned(),
                LeaveReason::Dead => "it died".to_owned(),
                LeaveReason::Silent { seconds } => format!("it was silent for {seconds} s"),
                LeaveReason::Deleted => "its service is deleted".to_owned(),
            };
            format!("node {node} is let go, as {because}")
        }
        EventKind::NodeGone { node } => format!("node {node} is gone"),
        EventKind::NodeDelayed {
            node,
            attempts,
            pause_ms,
            for_good,
        } => {
            let how = if *for_good {
                "is refused"
            } else {
                "does not come yet"
            };
            let again = pause(*pause_ms);
            format!("node {node} {how} (attempt {attempts}, asked for again in {again})")
        }
        EventKind::NodeBlocked { node } => format!("node {node} cannot be asked for now"),
        EventKind::QuotaRefused {
            node,
            quota,
            in_use,
        } => format!(
            "node {node} is not asked for: the quota of {quota} nodes is used up ({in_use} in use)"
        ),
        EventKind::MachineFailed { node } => format!("the machine of node {node} is given up"),
        EventKind::MachineTried {
            node,
            failures,
            pause_ms,
        } => format!(
            "another machine is tried for node {node} in {}, after {failures} that came to nothing",
            pause(*pause_ms)
        ),
        EventKind::StrayDestroyed { node, machine } => format!(
            "machine {machine}, which was asked for node {node} and came too late, was destroyed"
        ),
        EventKind::MachineQuarantined {
            machine,
            hostname,
            cloud,
        } => format!(
            "machine {machine} ({hostname}) of {cloud} is in quarantine: an operator may destroy it"
        ),
        EventKind::QuarantineEnded { machine, wanted } => {
            let how = if *wanted { "was destroyed" } else { "is gone" };
            format!("machine {machine}, which was in quarantine, {how}")
        }
        EventKind::EnrolmentRefused {
            node,
            machine,
            code,
            count,
        } => {
            let refused = format!("enrolment of machine {machine} of node {node} was refused");
            format!("{} ({code})", times(*count, &refused))
        }
        EventKind::ProcessEnded {
            node,
            role,
            process,
            times: count,
            total,
            ..
        } => {
            let ended = format!("{role} ({process}) on node {node} ended and is started again");
            format!("{}{}", times(*count, &ended), in_all(*count, *total))
        }
        EventKind::AgentRestarted {
            node,
            times: count,
            total,
            ..
        } => {
            let ended = format!("the agent of node {node} ended and is started again");
            format!("{}{}", times(*count, &ended), in_all(*count, *total))
        }
        EventKind::Note { kind, facts } => {
            let mut text = kind.replace('_', " ");
            let facts = facts.as_object().into_iter().flatten();
            for (key, value) in facts.filter(|(_, value)| !value.is_null()) {
                text.push_str(&format!(" {key}={}", plain(value)));
            }
            text
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};
    use std::collections::BTreeSet;

    /// Every kind once, with what is said of it.
    fn examples() -> Vec<(&'static str, Value, &'static str)> {
        vec![
            (
                "application_created",
                json!({"name": "shop"}),
                "application shop was created",
            ),
            (
                "application_renamed",
                json!({"from": "shop", "to": "store"}),
                "application shop was renamed to store",
            ),
            (
                "egress_changed",
                json!({"egress": "none"}),
                "nothing of it gets out of its network any more",
            ),
            (
                "application_trashed",
                json!({"name": "shop"}),
                "shop was deleted and rests in the trash",
            ),
            (
                "application_restored",
                json!({"name": "shop"}),
                "shop came back from the trash",
            ),
            (
                "service_added",
                json!({"type": "php"}),
                "service of type php was added",
            ),
            (
                "service_renamed",
                json!({"from": "web", "to": "site"}),
                "service web was renamed to site",
            ),
            ("service_deleted", json!({}), "the service is gone"),
            (
                "service_state",
                json!({"from": "INIT", "to": "PROLOGUE"}),
                "is PROLOGUE now, was INIT",
            ),
            (
                "release_served",
                json!({"release": 3, "before": 2}),
                "people are led to release r3 instead of r2",
            ),
            (
                "release_refused",
                json!({"release": 3, "serving": 2}),
                "release r3 does not come up, and nobody is led to it; r2 goes on serving",
            ),
            (
                "managers_wished",
                json!({"wish": "stopped"}),
                "managers are not needed now",
            ),
            (
                "domain_added",
                json!({"domain": "www.example.org"}),
                "the host name www.example.org leads here",
            ),
            (
                "domain_removed",
                json!({"domain": "www.example.org"}),
                "the host name www.example.org leads here no more",
            ),
            (
                "code_uploaded",
                json!({"code": "code-1", "filename": "a.zip", "files": 7}),
                "code code-1 was uploaded from a.zip (7 files)",
            ),
            (
                "operation_started",
                json!({"operation": "op-1", "kind": "scale"}),
                "scale began (op-1)",
            ),
            (
                "operation_ended",
                json!({"operation": "op-1", "kind": "scale", "outcome": "failed"}),
                "scale ended as failed (op-1)",
            ),
            (
                "node_replaced",
                json!({"node": 3}),
                "another node shall replace node 3",
            ),
            (
                "node_requested",
                json!({"node": 3, "cloud": "local", "instance_type": "small", "because": {"of": "replacement", "replaces": 1}}),
                "node 3 is wanted in the place of node 1 (small from local)",
            ),
            ("node_up", json!({"node": 3}), "node 3 is up"),
            (
                "node_died",
                json!({"node": 3, "signal": {"of": "not_listed"}}),
                "node 3 died",
            ),
            (
                "node_let_go",
                json!({"node": 3, "because": "surplus"}),
                "node 3 is let go, as it is not needed any more",
            ),
            ("node_gone", json!({"node": 3}), "node 3 is gone"),
            (
                "node_delayed",
                json!({"node": 3, "attempts": 2, "pause_ms": 500, "for_good": false}),
                "node 3 does not come yet (attempt 2, asked for again in 500 ms)",
            ),
            (
                "node_blocked",
                json!({"node": 3}),
                "node 3 cannot be asked for now",
            ),
            (
                "quota_refused",
                json!({"node": 3, "quota": 2, "in_use": 2}),
                "node 3 is not asked for: the quota of 2 nodes is used up (2 in use)",
            ),
            (
                "machine_failed",
                json!({"node": 3}),
                "the machine of node 3 is given up",
            ),
            (
                "machine_tried",
                json!({"node": 3, "failures": 2, "pause_ms": 2500}),
                "another machine is tried for node 3 in 2 s, after 2 that came to nothing",
            ),
            (
                "stray_destroyed",
                json!({"node": 3, "machine": "m-1"}),
                "machine m-1, which was asked for node 3 and came too late, was destroyed",
            ),
            (
                "enrolment_refused",
                json!({"node": 3, "machine": "m-1", "code": "other_key", "count": 4}),
                "enrolment of machine m-1 of node 3 was refused, 4 times (other_key)",
            ),
            (
                "machine_quarantined",
                json!({"machine": "m-1", "hostname": "shop-web-3", "cloud": "local"}),
                "machine m-1 (shop-web-3) of local is in quarantine: an operator may destroy it",
            ),
            (
                "quarantine_ended",
                json!({"machine": "m-1", "wanted": true}),
                "machine m-1, which was in quarantine, was destroyed",
            ),
            (
                "process_ended",
                json!({"node": 3, "role": "web", "process": "nginx", "exit": {"signal": 9}, "times": 2, "total": 5}),
                "web (nginx) on node 3 ended and is started again, 2 times (5 in all)",
            ),
            (
                "agent_restarted",
                json!({"node": 3, "exit": {"code": 1}, "times": 1, "total": 1}),
                "the agent of node 3 ended and is started again",
            ),
            ("note", json!({"node": 3, "none": null}), "note node=3"),
        ]
    }

    fn event(kind: &str, facts: &Value) -> Event {
        serde_json::from_value(json!({
            "sequence": 3, "at": "2026-01-02T03:04:05Z", "service": null, "actor": "system",
            "reason": null, "kind": kind, "facts": facts,
        }))
        .unwrap()
    }

    #[test]
    fn every_kind_has_its_words_and_loses_no_fact() {
        for (kind, facts, words) in examples() {
            let event = event(kind, &facts);
            assert_eq!(sentence(&event), words);
            let is_note = matches!(event.what, EventKind::Note { .. });
            assert_eq!(is_note, kind == "note", "{kind}: {:?}", event.what);
            assert_eq!(serde_json::to_value(&event).unwrap()["facts"], facts);
        }
    }

    #[test]
    fn the_examples_are_all_kinds_that_the_api_describes() {
        let document = include_str!("../../../openapi/director.json");
        let document: Value = serde_json::from_str(document).unwrap();
        let kinds: BTreeSet<String> = document["components"]["schemas"]["EventKind"]["oneOf"]
            .as_array()
            .unwrap()
            .iter()
            .map(|one| plain(&one["properties"]["kind"]["enum"][0]))
            .collect();
        let shown: BTreeSet<String> = examples().iter().map(|e| e.0.to_owned()).collect();
        assert_eq!(kinds, shown);
    }

    #[test]
    fn service_reason_and_actor_are_said_and_control_characters_are_not() {
        let mut died = event(
            "node_died",
            &json!({"node": 2, "signal": {"of": "not_listed"}}),
        );
        died.service = Some("web".parse().unwrap());
        died.reason = Some("lost\u{1b}[2J".into());
        died.actor = "ada".into();
        assert_eq!(sentence(&died), "web: node 2 died: lost [2J (by ada)");
    }
}
