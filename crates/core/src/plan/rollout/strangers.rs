//! Providers that the Director does not know: it came back from a backup, and what was made after
//! that runs on, in quarantine. Who uses it goes on until enough that is known has taken its place.
//! Nothing here is ever started, drained or stopped: that is not ours to do.

use super::Rollout;
use super::levels::Offer;
use crate::plan::Node;
use crate::service_type::RoleDeclaration;
use conpaas_model::ids::ReleaseNumber;
use conpaas_model::level::{Instance, Provider};
use std::collections::{BTreeMap, BTreeSet};

impl<'a> Rollout<'a> {
    /// Everybody whom levels name and whose node has no record.
    fn all_strangers(&self) -> impl Iterator<Item = &'a Provider> {
        let nodes = self.input.nodes;
        let levels = nodes.values().flat_map(|n| n.level.roles.values());
        let providers = levels.flat_map(|level| &level.providers);
        providers.filter(|provider| !nodes.contains_key(&provider.node))
    }

    /// How many instances of a role's release there are on nodes without a record.
    pub(super) fn strangers_of(&self, role: &str, release: ReleaseNumber) -> usize {
        let found = self.all_strangers();
        let found = found.filter(|p| p.role == role && p.release == Some(release));
        found.map(|p| p.node).collect::<BTreeSet<_>>().len()
    }

    /// Those that a user's node goes on to use.
    pub(super) fn strangers(
        &self,
        node: &'a Node,
        user: &RoleDeclaration,
        serving: Option<ReleaseNumber>,
        offers: &BTreeMap<&str, Vec<Offer>>,
    ) -> Vec<&'a Provider> {
        let shown = node.roles.get(user.name).and_then(|status| status.serving);
        let before = node.level.roles.get(user.name);
        let before = before.into_iter().flat_map(|level| &level.providers);
        before
            .filter(|p| !self.input.nodes.contains_key(&p.node))
            // Of a led role another one leads now, or will.
            .filter(|p| !self.input.service_type.led().contains(&p.role.as_str()))
            .filter(|p| {
                let Some(role) = self.input.service_type.role(&p.role) else {
                    return false;
                };
                let active = Some(self.input.spec.active);
                let led_there = p.release.is_some() && (p.release == serving || p.release == shown);
                if led_there && p.release != active {
                    return true;
                }
                let offers = offers.get(p.role.as_str()).into_iter().flatten();
                let taken_over = offers.filter(|offer| {
                    offer.ready && (p.release.is_none() || offer.provider.release == active)
                });
                taken_over.count() < self.need(role).max(1)
            })
            .collect()
    }

    /// The capacity that users were told of an instance whose release the spec does not know.
    pub(super) fn told_capacity(&self, instance: &Instance) -> Option<u32> {
        let levels = self.input.nodes.values();
        let levels = levels.flat_map(|n| n.level.roles.values());
        let mut providers = levels.flat_map(|level| &level.providers);
        let told = providers.find(|provider| provider.instance() == *instance)?;
        Some(told.capacity)
    }
}
