//! Managers' streams: who has the post, what goes down, what is taken of what comes up, commands,
//! and the way of an exposure to the edge and back.

use super::world::{Agent, Manager, World, code_of, eventually};
use crate::machine_side::MachineSide;
use conpaas_model::edge::{APPLIED_FILE, Applied, ROUTES_FILE, RouteState, Routes};
use conpaas_model::ends::{EndsToTell, Exit, ProcessEnds};
use conpaas_model::event::{LeaveReason, RequestReason};
use conpaas_model::ids::{Epoch, Generation, NodeNumber};
use conpaas_model::level::LevelVersion;
use conpaas_model::protocol::{
    Exposure, FromManager, Located, ManagerAddress, ManagerReport, NodeWish, PATH_LOCATE,
    ServiceReport, ToManager,
};
use conpaas_model::spec::RunWish;
use conpaas_model::status::{NodeState, NodeSummary, SILENT, ServiceStatus};
use std::net::SocketAddr;
use std::time::Duration;

fn present() -> NodeWish {
    NodeWish::Present {
        cloud: "memory".into(),
        instance_type: "small".into(),
    }
}

pub(super) fn report(
    world: &World,
    epoch: u64,
    nodes: &[(u64, NodeWish)],
    exposure: Exposure,
) -> ManagerReport {
    ManagerReport {
        epoch: Epoch(epoch),
        services: vec![ServiceReport {
            service: world.web.clone(),
            nodes: nodes
                .iter()
                .map(|(n, wish)| (NodeNumber(*n), wish.clone()))
                .collect(),
            exposure,
            status: ServiceStatus {
                // A world's service is wished once, after it was made.
                generation: Generation(2),
                ..ServiceStatus::default()
            },
            requested: Default::default(),
            leaving: Default::default(),
            ends: Vec::new(),
        }],
    }
}

fn exposure(generation: u64, address: Option<SocketAddr>) -> Exposure {
    Exposure {
        version: LevelVersion {
            epoch: Epoch(1),
            generation: Generation(generation),
        },
        upstreams: address
            .map(|address| (NodeNumber(1), address))
            .into_iter()
            .collect(),
    }
}

/// A world whose manager is connected.
pub async fn managed() -> (World, Agent, Manager) {
    managed_in(World::start().await).await
}

async fn managed_in(world: World) -> (World, Agent, Manager) {
    world.wish(&world.system, RunWish::Running).await;
    world.wish(&world.web, RunWish::Running).await;
    let context = world.birth().await;
    let agent = Agent::enrol(&context, None).await.unwrap();
    world.node_is(&world.system, 1, NodeState::Up).await;
    let manager = agent.manager().await.unwrap();
    (world, agent, manager)
}

#[tokio::test]
async fn a_manager_gets_its_level_and_its_wishes_become_nodes() {
    let (world, _agent, mut manager) = managed().await;
    let level = manager.level().await;
    assert_eq!((level.epoch, level.services.len()), (Epoch(1), 1));
    assert_eq!(level.services[0].spec.service, world.web);
    assert_eq!(level.services[0].next_node, NodeNumber(1));
    assert!(
        level.services[0]
            .spec
            .release(level.services[0].spec.active)
            .is_some()
    );

    manager
        .say(report(
            &world,
            1,
            &[(1, present()), (2, present())],
            Exposure::default(),
        ))
        .await;
    let (one, two) = (world.birth().await, world.birth().await);
    assert_ne!(one.address, two.address);
    let worker = Agent::enrol(&one, None).await.unwrap();
    world.node_is(&world.web, one.node.0, NodeState::Up).await;
    let level = manager.level_when(|level| {
        level.services[0]
            .nodes
            .iter()
            .any(|node| node.number == one.node && node.state == NodeState::Up)
    });
    let level = level.await;
    assert_eq!(
        level.services[0].machines.get(&one.machine),
        Some(&one.node)
    );
    assert_eq!(level.services[0].next_node, NodeNumber(3));
    let located: Located = worker.client.get_json(PATH_LOCATE).await.unwrap();
    assert_eq!(located.epoch, Epoch(1));
    assert!(
        matches!(located.manager, ManagerAddress::At { address, .. } if address.port() == 7444)
    );
    // Only nodes of a system service may have managers.
    assert_eq!(code_of(worker.manager().await), "no_system_node");

    // A number that is over is not given again; the wish of gone ends in nothing.
    manager
        .say(report(
            &world,
            1,
            &[(1, NodeWish::Gone), (2, NodeWish::Gone)],
            Exposure::default(),
        ))
        .await;
    eventually("both are over", || async {
        world.nodes(&world.web).await.is_empty().then_some(())
    })
    .await;
    manager
        .say(report(&world, 1, &[(1, present())], Exposure::default()))
        .await;
    manager
        .say(report(&world, 1, &[(3, present())], Exposure::default()))
        .await;
    let third = world.birth().await;
    assert_eq!(third.node, NodeNumber(3));
    assert_eq!(world.nodes(&world.web).await.len(), 1);
    world.end().await;
}

#[tokio::test]
async fn whose_agent_hangs_up_is_looked_for_before_the_cloud_is_due() {
    let world = World::listing(Duration::from_secs(3600)).await;
    let (world, _agent, mut manager) = managed_in(world).await;
    let wish = [(1, present())];
    manager
        .say(report(&world, 1, &wish, Exposure::default()))
        .await;
    let context = world.birth().await;
    Agent::enrol(&context, None).await.unwrap();
    world.node_is(&world.web, 1, NodeState::Up).await;
    let machines = world.cloud.machines();
    let machine = machines.iter().find(|one| one.machine == context.machine);
    let killed = conpaas_cloud::Exit::Signal { signal: 9 };
    assert!(world.cloud.kill(&machine.unwrap().id, killed));

    let mut said = report(&world, 1, &wish, Exposure::default());
    said.services[0].status.nodes.push(NodeSummary {
        number: NodeNumber(1),
        state: SILENT.to_owned(),
        roles: Vec::new(),
        health: Default::default(),
    });
    manager.say(said).await;
    world.node_is(&world.web, 1, NodeState::Dead).await;
    world.end().await;
}

#[tokio::test]
async fn an_exposure_reaches_the_edge_and_its_answer_the_manager() {
    let (world, _agent, mut manager) = managed().await;
    manager
        .say(report(&world, 1, &[(1, present())], Exposure::default()))
        .await;
    let context = world.birth().await;
    Agent::enrol(&context, None).await.unwrap();
    let address = SocketAddr::from((context.address, 8000));
    manager
        .say(report(
            &world,
            1,
            &[(1, present())],
            exposure(1, Some(address)),
        ))
        .await;
    // There is no edge yet: the exposure counts, since nothing is in flight anywhere.
    let level = manager
        .level_when(|level| level.services[0].edge.applied.generation == Generation(1))
        .await;
    assert!(level.services[0].edge.using.is_empty());
    let routes: Routes = eventually("the route serves", || async {
        let text = std::fs::read(world.edge_folder().join(ROUTES_FILE)).ok()?;
        let routes: Routes = serde_json::from_slice(&text).ok()?;
        routes
            .routes
            .first()
            .is_some_and(|route| route.state == RouteState::Serving)
            .then_some(routes)
    })
    .await;
    assert_eq!(routes.routes[0].upstreams[0].address, address);
    assert_eq!(routes.routes[0].hosts[0], "shop-ann.localhost");

    // An edge that runs must take each exposure first.
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let answer = |generation| Applied {
        generation,
        at: String::new(),
        listening: listener.local_addr().unwrap(),
        draining: Vec::new(),
    };
    let write = |applied: &Applied| {
        let beside = world.edge_folder().join("beside");
        std::fs::write(&beside, serde_json::to_vec(applied).unwrap()).unwrap();
        std::fs::rename(&beside, world.edge_folder().join(APPLIED_FILE)).unwrap();
    };
    write(&answer(routes.generation));
    manager
        .say(report(&world, 1, &[(1, present())], exposure(2, None)))
        .await;
    let newer = eventually("newer routes are written", || async {
        let text = std::fs::read(world.edge_folder().join(ROUTES_FILE)).ok()?;
        let newer: Routes = serde_json::from_slice(&text).ok()?;
        (newer.generation > routes.generation && newer.routes[0].upstreams.is_empty())
            .then_some(newer)
    })
    .await;
    let applied = || world.edge_status().applied.generation;
    assert_eq!(applied(), Generation(1));
    let mut last = answer(newer.generation);
    last.draining.push(conpaas_model::edge::Draining {
        node: "web-1".into(),
        network: conpaas_model::edge::NetworkAccess::Host,
        address,
        in_flight: 2,
    });
    write(&last);
    let level = manager
        .level_when(|level| level.services[0].edge.applied.generation == Generation(2))
        .await;
    assert_eq!(level.services[0].edge.using, [NodeNumber(1)].into());
    write(&answer(newer.generation));
    manager
        .level_when(|level| level.services[0].edge.using.is_empty())
        .await;
    world.end().await;
}

#[tokio::test]
async fn the_newest_manager_has_the_post_and_keeps_it_over_a_restart() {
    let (mut world, first_agent, mut first) = managed().await;
    first.level().await;
    // Another node of the system service comes; its manager takes the post.
    let system = world.system.clone();
    world
        .store
        .transaction(move |tx| {
            let mut row = crate::store::services::get(tx, &system)?.unwrap();
            row.roles
                .values_mut()
                .flat_map(|role| &mut role.pools)
                .for_each(|pool| pool.count = 2);
            row.generation = row.generation.next();
            crate::store::services::update_wish(tx, &row)
        })
        .await
        .unwrap();
    let context = world.birth().await;
    assert_eq!(context.node, NodeNumber(2));
    let second_agent = Agent::enrol(&context, None).await.unwrap();
    let mut second = eventually("the second manager comes in", || async {
        second_agent.manager().await.ok()
    })
    .await;
    assert_eq!(second.level().await.epoch, Epoch(2));
    first.is_over().await;
    assert_eq!(code_of(first_agent.manager().await), "outranked");
    // A report of another epoch than the stream's is refused and counted.
    second
        .say(report(&world, 1, &[(1, present())], Exposure::default()))
        .await;
    let machines = world.machines().clone();
    eventually("it is counted", || async {
        (machines.refused_reports() == 1).then_some(())
    })
    .await;
    assert!(world.nodes(&world.web).await.is_empty());

    world.stop().await;
    world.resume().await;
    assert_eq!(code_of(first_agent.at(&world).manager().await), "outranked");
    let mut again = second_agent.at(&world).manager().await.unwrap();
    assert_eq!(again.level().await.epoch, Epoch(2));
    world.end().await;
}

#[tokio::test]
async fn commands_go_down_and_answers_come_up() {
    let (world, _agent, mut manager) = managed().await;
    manager.level().await;
    let machines = world.machines().clone();
    let web = world.web.clone();
    let asked = tokio::spawn(async move {
        machines
            .command(&web, "greet", serde_json::json!({"n": 1}))
            .await
    });
    let ToManager::Command {
        id,
        service,
        name,
        arguments,
    } = manager.command().await
    else {
        unreachable!()
    };
    assert_eq!(
        (service, name.as_str(), arguments["n"].as_i64()),
        (world.web.clone(), "greet", Some(1))
    );
    manager
        .send(&FromManager::CommandResult {
            id,
            result: Ok(serde_json::json!({"web-1": "hi"})),
        })
        .await;
    assert_eq!(asked.await.unwrap().unwrap()["web-1"], "hi");
    manager.hang_up();
    let machines = world.machines().clone();
    let refused = eventually("there is no manager", || async {
        machines
            .command(&world.web, "greet", serde_json::json!({}))
            .await
            .err()
    })
    .await;
    assert!(refused.to_string().contains("shop/web"), "{refused}");
    world.end().await;
}

#[tokio::test]
async fn what_managers_tell_of_their_nodes_is_written_down_once() {
    let (world, _agent, mut manager) = managed().await;
    let mut said = report(&world, 1, &[(1, present())], Exposure::default());
    let replaces = RequestReason::Replacement {
        replaces: NodeNumber(9),
    };
    said.services[0].requested.insert(NodeNumber(1), replaces);
    manager.say(said.clone()).await;
    let context = world.birth().await;
    Agent::enrol(&context, None).await.unwrap();
    world.node_is(&world.web, 1, NodeState::Up).await;
    let ends = |process: &str, count| EndsToTell {
        node: NodeNumber(1),
        ends: ProcessEnds {
            process: process.into(),
            count,
            last: Exit::Signal(9),
        },
    };
    // Counts may be said as often as one likes.
    for count in [2, 5] {
        said.services[0].ends = vec![ends("web/r1", count), ends("agent", 1)];
        manager.say(said.clone()).await;
        said.services[0].status.generation = Generation(count);
        manager.say(said.clone()).await;
        let level = manager.level_when(|level| {
            let told = level.services[0].nodes.first().map(|node| &node.told);
            told.is_some_and(|told| told.get("web/r1") == Some(&count))
        });
        assert_eq!(level.await.services[0].nodes[0].told["agent"], 1);
    }
    let times = "SELECT sum(json_extract(facts_json, '$.times')) FROM events
        WHERE kind = 'process_ended' AND json_extract(facts_json, '$.exit.signal') = 9";
    assert_eq!(world.count(times).await, 5);
    let agents = "SELECT count(*) FROM events WHERE kind = 'agent_restarted'";
    assert_eq!(world.count(agents).await, 1);

    said.services[0].nodes.insert(NodeNumber(1), NodeWish::Gone);
    let silent = LeaveReason::Silent { seconds: 10 };
    said.services[0].leaving.insert(NodeNumber(1), silent);
    manager.say(said).await;
    eventually("its death is told with the signal", || async {
        let silent = "SELECT count(*) FROM events WHERE kind = 'node_died'
            AND json_extract(facts_json, '$.signal.of') = 'silence'";
        (world.count(silent).await == 1).then_some(())
    })
    .await;
    let requested = "SELECT count(*) FROM events WHERE kind = 'node_requested'
        AND json_extract(facts_json, '$.because.replaces') = 9";
    assert_eq!(world.count(requested).await, 1);
    world.end().await;
}
