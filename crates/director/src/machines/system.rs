//! The Director as manager of system services: the same managers' half as on machines, fed from
//! the store and reporting into it.

use super::intake;
use super::levels;
use super::reports::{self, Filter, Origin, Pass};
use super::shared::{Shared, full};
use crate::error::DirectorError;
use crate::store::changes::Touched;
use conpaas_model::ids::{ApplicationId, Generation};
use conpaas_model::protocol::{ManagerLevel, ServiceLevel};
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;
use tokio::time::{MissedTickBehavior, interval};

/// How often what was measured of system nodes is taken in.
const MEASURES: Duration = Duration::from_secs(5);

/// How often everything is said again: what could not be recorded must not wait for news.
const FULL_REPORT: Duration = Duration::from_secs(2);

/// Works until the Director ends.
pub async fn run(shared: Arc<Shared>) {
    let mut changes = shared.store.follow();
    let mut said = shared.managers.reports();
    let mut sent: Option<Vec<ServiceLevel>> = None;
    let mut filter = Filter::default();
    let mut known = BTreeMap::new();
    let mut taken = BTreeMap::new();
    let mut measures = interval(MEASURES);
    measures.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut clock = interval(FULL_REPORT);
    clock.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        let touched = changes.take();
        if touched != Touched::default()
            && let Err(error) = feed(&shared, &touched, &mut known, &mut sent).await
        {
            changes.put_back(&touched);
            tracing::error!(
                error = full(&error),
                "the levels of system services could not be read"
            );
        }
        tokio::select! {
            () = shared.shutdown.cancelled() => return,
            _ = changes.changed() => {}
            _ = measures.tick() => measure(&shared, sent.as_deref().unwrap_or_default()).await,
            _ = clock.tick() => said.mark_changed(),
            more = said.changed() => {
                if more.is_err() {
                    return;
                }
                let report = said.borrow_and_update().clone();
                let Some(report) = report else { continue };
                let Some(pass) = filter.pass(&report) else { continue };
                // They are of many applications, and most say what they said.
                let bare = reports::without_figures((*report).clone());
                let mut news = report.services.clone();
                if pass == Pass::News {
                    news.retain(|one| {
                        let said = bare.services.iter().find(|bare| bare.service == one.service);
                        taken.get(&one.service) != said
                    });
                }
                let outcome = reports::take(&shared, Origin::Director, news, pass).await;
                taken = bare.services.into_iter().map(|one| (one.service.clone(), one)).collect();
                if let Err(error) = outcome {
                    taken.clear();
                    filter.reset();
                    tracing::error!(error = full(&error), "the report of system services could not be recorded");
                }
            }
        }
    }
}

/// Takes in what was measured of the nodes of system services, which are of many applications.
async fn measure(shared: &Arc<Shared>, services: &[ServiceLevel]) {
    let mut by_application = BTreeMap::<_, Vec<_>>::new();
    for node in shared.managers.metrics(false).await {
        if let Some(service) = services.iter().find(|one| one.spec.service == node.service) {
            let application = service.spec.application.clone();
            by_application.entry(application).or_default().push(node);
        }
    }
    for (application, told) in by_application {
        intake::metrics(shared, &application, told).await;
    }
}

async fn feed(
    shared: &Arc<Shared>,
    touched: &Touched,
    known: &mut BTreeMap<ApplicationId, Vec<ServiceLevel>>,
    sent: &mut Option<Vec<ServiceLevel>>,
) -> Result<(), DirectorError> {
    if *touched == Touched::Everything {
        known.clear();
    }
    known.extend(levels::of_system(shared, touched.clone()).await?);
    known.retain(|_, services| !services.is_empty());
    let services: Vec<ServiceLevel> = known.values().flatten().cloned().collect();
    if sent.as_ref() == Some(&services) {
        return Ok(());
    }
    let level = ManagerLevel {
        generation: Generation(shared.hub.number()),
        // System services are of many applications; each one's spec names its own.
        application: ApplicationId::from_suffix("system")
            .map_err(|error| DirectorError::internal("an id could not be made", error))?,
        epoch: shared.incarnation.director_epoch(),
        instance_types: shared.instance_types(),
        services: services.clone(),
        // Its own managers' half shows no certificate to itself.
        trust: String::new(),
    };
    if let Err(error) = shared.managers.level(level).await {
        return Err(DirectorError::internal(
            "the system services' managers refused a level",
            error,
        ));
    }
    *sent = Some(services);
    Ok(())
}
