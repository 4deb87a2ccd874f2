//! API types: what people send to and get from the Director, whatever face they use. Times are
//! RFC 3339 in UTC. Who may call what is the Director's business.

use crate::egress::Egress;
use crate::environment::Environment;
use crate::ids::{
    ApplicationId, CodeId, Generation, MachineId, Name, NodeNumber, OperationId, PrincipalId,
    ReleaseNumber, SecretVersion, ServiceId, TokenId,
};
use crate::instance::InstanceType;
use crate::spec::{CountOwner, RoleName, RoleWish, Settings};
use crate::status::{NodeState, NodeSummary, ServiceState, Step, Waiting};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use utoipa::ToSchema;

pub use crate::ends::Exit;
pub use crate::event::{DeathSignal, Event, EventKind, LeaveReason, RequestReason};

/// Free labels people put on things.
pub type Labels = BTreeMap<String, String>;

/// A page of a collection.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
pub struct Page<T> {
    pub items: Vec<T>,
    /// Pass as `cursor` to get the next page; absent on the last one.
    pub next: Option<String>,
}

/// An error as the API answers it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct ErrorBody {
    /// Stable word, for instance `not_found`.
    pub code: String,
    /// What is wrong and why.
    pub message: String,
    /// The next step, often a command to type.
    pub hint: Option<String>,
}

#[derive(Clone, Serialize, Deserialize, ToSchema)]
pub struct Login {
    pub name: Name,
    pub password: String,
    /// What the token is called in the list, for instance the computer's name.
    pub label: Option<String>,
    /// Lifetime in seconds; the Director's setting caps it.
    pub lifetime_seconds: Option<u64>,
}

/// A new token; the secret is shown this once.
#[derive(Clone, Serialize, Deserialize, ToSchema)]
pub struct NewToken {
    pub id: TokenId,
    pub secret: String,
    pub expires_at: String,
    pub user: User,
}

#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
pub struct TokenCreate {
    pub label: String,
    pub lifetime_seconds: Option<u64>,
}

#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
pub struct Token {
    pub id: TokenId,
    pub label: String,
    pub created_at: String,
    pub expires_at: String,
    pub last_used_at: Option<String>,
}

/// What a principal may do at all.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum Rank {
    /// Runs the installation.
    Operator,
    /// Runs applications on it.
    User,
}

#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
pub struct User {
    pub id: PrincipalId,
    pub name: Name,
    pub rank: Rank,
    /// Most nodes at once over all applications.
    pub node_quota: u32,
    /// Nodes in use now, managers' included.
    pub nodes: u32,
    pub created_at: String,
}

#[derive(Clone, Serialize, Deserialize, ToSchema)]
pub struct UserCreate {
    pub name: Name,
    pub password: String,
    pub rank: Option<Rank>,
    pub node_quota: Option<u32>,
}

#[derive(Clone, Serialize, Deserialize, ToSchema)]
pub struct PasswordChange {
    /// One's own present password; an operator may leave it out for another user.
    pub current: Option<String>,
    pub new: String,
}

/// How many nodes a user may have at once, over all applications.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
pub struct QuotaChange {
    pub node_quota: u32,
}

#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
pub struct AppCreate {
    pub name: Name,
    #[serde(default)]
    pub description: String,
    #[serde(default)]
    pub labels: Labels,
    /// Its way out; as much as the installation allows when absent.
    #[serde(default)]
    pub egress: Option<Egress>,
}

/// What may be changed of an application; what is absent stays.
#[derive(Clone, Debug, Default, Serialize, Deserialize, ToSchema)]
pub struct AppUpdate {
    pub name: Option<Name>,
    pub description: Option<String>,
    pub labels: Option<Labels>,
    #[serde(default)]
    pub egress: Option<Egress>,
}

/// What may be changed of a service; what is absent stays.
#[derive(Clone, Debug, Default, Serialize, Deserialize, ToSchema)]
pub struct Rename {
    pub name: Option<Name>,
    pub description: Option<String>,
    pub labels: Option<Labels>,
}

#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
pub struct App {
    pub id: ApplicationId,
    pub name: Name,
    pub owner: Name,
    pub description: String,
    pub labels: Labels,
    /// Its way out.
    #[serde(default)]
    pub egress: Egress,
    pub state: ServiceState,
    pub reason: Option<String>,
    pub services: Vec<Service>,
    /// Addresses in a browser, of all exposed services.
    pub urls: Vec<String>,
    /// What its nodes cost now, in credits an hour.
    pub credits_per_hour: f64,
    pub created_at: String,
    pub generation: Generation,
    /// What the caller may do now, for instance `start`.
    pub allowed: Vec<String>,
    /// When it was put into the trash, if it was.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub trashed_at: Option<String>,
    /// When it will be destroyed for good, if it is in the trash.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub destroyed_at: Option<String>,
}

/// Which nodes of an application are made anew.
#[derive(Clone, Copy, Debug, Default, Serialize, Deserialize, ToSchema)]
pub struct AppUpgrade {
    /// All, not only those that are made of an older image or program.
    #[serde(default)]
    pub all: bool,
}

/// How an application comes back from the trash.
#[derive(Clone, Debug, Default, Serialize, Deserialize, ToSchema)]
pub struct Restore {
    /// Its name from now on; the one it had when absent.
    pub name: Option<Name>,
}

#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
pub struct ServiceCreate {
    pub service_type: String,
    /// The type's name when absent.
    pub name: Option<Name>,
    #[serde(default)]
    pub description: String,
    #[serde(default)]
    pub labels: Labels,
    /// A manager on a machine of its own, rather than the application's common one.
    #[serde(default)]
    pub own_manager: bool,
    /// Start it when the application is running.
    #[serde(default)]
    pub start: bool,
    #[serde(default)]
    #[schema(value_type = Object)]
    pub settings: Settings,
}

#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
pub struct Service {
    pub id: ServiceId,
    pub name: Name,
    pub application: Name,
    pub service_type: String,
    pub description: String,
    pub labels: Labels,
    pub state: ServiceState,
    pub reason: Option<String>,
    pub roles: BTreeMap<RoleName, RoleWish>,
    pub generation: Generation,
    /// The generation that what is observed has reached.
    pub reached: Generation,
    pub active_release: ReleaseNumber,
    pub serving_release: Option<ReleaseNumber>,
    /// The release that is held for a preview.
    #[serde(default)]
    pub preview_release: Option<ReleaseNumber>,
    #[schema(value_type = Object)]
    pub settings: Settings,
    pub url: Option<String>,
    /// Host names that it has claimed: they lead where `url` leads.
    #[serde(default)]
    pub domains: Vec<String>,
    /// Where the release that is held is shown.
    #[serde(default)]
    pub preview_url: Option<String>,
    pub waiting: Vec<Waiting>,
    /// What is as it was asked for and may still surprise whoever asked.
    #[serde(default)]
    pub warnings: Vec<String>,
    pub operation: Option<OperationId>,
    pub nodes: Vec<NodeSummary>,
    pub own_manager: bool,
    pub created_at: String,
    pub allowed: Vec<String>,
}

/// New counts by role: `"4"` sets, `"+1"` adds to the default pool, `"2..6"` gives bounds for an
/// automatic scaler (an `owner` of `autoscaler`), which a count ends.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
pub struct Scale {
    pub roles: BTreeMap<RoleName, String>,
    /// Instance type of nodes to come, when it should change.
    pub instance_type: Option<String>,
    pub owner: Option<CountOwner>,
}

/// Settings to set; `null` puts one back to its default.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
pub struct SettingsChange {
    #[schema(value_type = Object)]
    pub settings: Settings,
    /// Hold the release and show it at the preview address alone, until it is promoted.
    #[serde(default)]
    #[schema(required = false)]
    pub preview: bool,
}

/// One variable of a service's environment.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Variable {
    pub name: String,
    pub value: String,
}

/// Variables to set; `null` unsets one.
#[derive(Clone, Debug, Default, Serialize, Deserialize, ToSchema)]
pub struct EnvironmentChange {
    pub variables: BTreeMap<String, Option<String>>,
}

/// A host name that leads to a service beside its own.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Domain {
    pub name: String,
    /// When it was claimed, and by whom.
    pub created_at: String,
    pub actor: String,
}

/// A host name to claim.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
pub struct DomainAdd {
    /// A whole host name, or one word for a name under the installation's domain.
    pub name: String,
}

/// A secret as the API tells of it: never its value.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct SecretInfo {
    pub name: String,
    /// Each new value is a new version.
    pub version: SecretVersion,
    /// When this version was set, and by whom.
    pub created_at: String,
    pub actor: String,
    /// False when it was sealed with a key that the Director has no more: set it again.
    pub readable: bool,
}

/// A new value of a secret; it is never answered again.
#[derive(Clone, Serialize, Deserialize, ToSchema)]
pub struct SecretChange {
    pub value: String,
}

#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
pub struct ReleaseInfo {
    pub number: ReleaseNumber,
    pub code: Option<CodeId>,
    #[schema(value_type = Object)]
    pub settings: Settings,
    #[serde(default)]
    pub environment: Environment,
    pub active: bool,
    /// It is held for a preview.
    #[serde(default)]
    pub preview: bool,
    /// It was only ever held: a rollback without a number passes it by.
    #[serde(default)]
    pub never_active: bool,
    pub created_at: String,
    pub actor: String,
    /// Why it was made, for instance `code activated`.
    pub reason: String,
}

#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
pub struct Rollback {
    /// The release whose code, settings, environment and secrets to take; the one before the active one if absent.
    pub release: Option<ReleaseNumber>,
    /// Hold the release and show it at the preview address alone, until it is promoted.
    #[serde(default)]
    #[schema(required = false)]
    pub preview: bool,
}

/// Where an upload stands that may go on when it broke off.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct UploadProgress {
    /// Bytes that are there; the next piece begins here.
    pub offset: u64,
}

#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
pub struct Code {
    pub id: CodeId,
    pub filename: String,
    pub description: String,
    pub size: u64,
    pub files: u64,
    pub sha256: String,
    pub active: bool,
    pub created_at: String,
    pub actor: String,
}

/// What a change answers: the operation to follow, and what it changes.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
pub struct Accepted {
    /// Absent when nothing had to be done.
    pub operation: Option<Operation>,
    /// Of the service that it changes: see there.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub warnings: Vec<String>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum Outcome {
    /// Still going on.
    Running,
    Done,
    Failed,
    Cancelled,
    /// Another change took its place before it was reached.
    Superseded,
}

/// A change under way: observer of a generation of one service (or of all of an application's).
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
pub struct Operation {
    pub id: OperationId,
    /// For instance `scale`.
    pub kind: String,
    pub application: Name,
    /// Absent for a change of the whole application.
    pub service: Option<Name>,
    /// By service name: the generation that has to be reached.
    pub targets: BTreeMap<String, Generation>,
    pub actor: String,
    pub outcome: Outcome,
    pub reason: Option<String>,
    pub steps: Vec<Step>,
    pub waiting: Vec<Waiting>,
    pub created_at: String,
    pub deadline: String,
    pub ended_at: Option<String>,
    pub cancellable: bool,
}

#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
pub struct Node {
    pub number: NodeNumber,
    /// For instance `web-3`.
    pub name: String,
    pub service: Name,
    pub state: NodeState,
    pub trouble: Option<String>,
    pub cloud: String,
    pub instance_type: String,
    pub address: String,
    pub machine: Option<String>,
    pub manager: bool,
    pub summary: Option<NodeSummary>,
    /// Limits as the cloud reads them back, in words.
    pub limits: Option<String>,
    /// What its machine started from (image and program), in its cloud's words.
    pub image: Option<String>,
    /// Its cloud makes machines of something newer now; an upgrade replaces it. Absent: not known yet.
    pub outdated: Option<bool>,
    pub created_at: String,
}

#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
pub struct CommandCall {
    #[serde(default)]
    #[schema(value_type = Object)]
    pub arguments: serde_json::Value,
}

#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
pub struct CommandAnswer {
    #[schema(value_type = Object)]
    pub result: serde_json::Value,
}

#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
pub struct LogLine {
    /// When it arrived at the Director.
    pub at: String,
    pub node: String,
    /// Role and kind of log, for instance `web-access`.
    pub source: String,
    pub line: String,
}

#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
pub struct RoleInfo {
    pub name: RoleName,
    pub title: String,
    pub uses: Vec<RoleName>,
    pub min: u32,
    pub max: u32,
    pub default_count: u32,
    pub exposed: bool,
}

#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
pub struct CommandInfo {
    pub name: String,
    pub title: String,
    /// `query` or `change`.
    pub kind: String,
    #[schema(value_type = Object)]
    pub arguments: serde_json::Value,
}

#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
pub struct ServiceTypeInfo {
    pub name: String,
    pub title: String,
    pub roles: Vec<RoleInfo>,
    pub commands: Vec<CommandInfo>,
    #[schema(value_type = Object)]
    pub settings_schema: serde_json::Value,
    pub takes_code: bool,
    /// Whether its services can have an environment and secrets.
    #[serde(default)]
    pub takes_environment: bool,
}

#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
pub struct CloudInfo {
    pub name: String,
    pub driver: String,
    /// How machines are limited, in words.
    pub limits: String,
    pub features: Vec<String>,
    pub instance_types: Vec<InstanceType>,
    pub free_vcpus: f64,
    pub free_memory_mib: u64,
    pub free_disk_mib: u64,
    pub machines: u32,
}

/// What was measured, in steps of time.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
pub struct Metrics {
    pub since: String,
    pub until: String,
    pub step_seconds: u32,
    pub series: Vec<MetricSeries>,
}

/// One metric of a service's nodes or of a role, all nodes and releases together unless they are
/// told apart.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
pub struct MetricSeries {
    pub service: String,
    /// The node's name.
    pub node: Option<String>,
    pub number: Option<NodeNumber>,
    /// Absent for what is the nodes' own.
    pub role: Option<RoleName>,
    pub release: Option<ReleaseNumber>,
    /// `FAMILY` or `FAMILY.KIND`; a family's kinds add up.
    pub name: String,
    /// `counter`, `gauge` or `histogram` (of durations).
    pub kind: String,
    /// Over the whole time.
    pub total: MetricPoint,
    /// For each step in which something was measured.
    pub points: Vec<MetricPoint>,
}

/// Of a counter `count` and `rate`, of a gauge `mean`, `min` and `max`, of a histogram `count`,
/// `rate` and, in milliseconds, `mean` and quantiles (within 9.2 percent of the true ones).
#[derive(Clone, Debug, Default, Serialize, Deserialize, ToSchema)]
pub struct MetricPoint {
    /// When the step began.
    pub at: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub count: Option<u64>,
    /// Per second.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rate: Option<f64>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mean: Option<f64>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub min: Option<u64>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max: Option<u64>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub p50: Option<f64>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub p90: Option<f64>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub p99: Option<f64>,
}

#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
pub struct AuditRow {
    pub id: u64,
    pub at: String,
    pub actor: String,
    pub token: Option<TokenId>,
    pub action: String,
    pub target: String,
    /// HTTP status of the answer; absent when the Director ended before it.
    pub status: Option<u16>,
}

/// What a root is for at the moment.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum RootState {
    /// Certificates are made by it.
    Signs,
    /// It signs as soon as everybody trusts it.
    Next,
    /// It signed before, and is still trusted.
    Former,
}

/// A root that machines, managers and the Director trust each other by.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
pub struct RootInfo {
    /// SHA-256 of its public key: its name.
    pub fingerprint: String,
    pub state: RootState,
    pub expires_at: String,
    /// Agents and managers that there are.
    pub parties: u32,
    /// How many of them trust it.
    pub trusted_by: u32,
    /// How many of them have a certificate of it.
    pub certificates: u32,
    /// Who has to move before it signs, or may be retired.
    pub waits_for: Vec<String>,
}

#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
pub struct DirectorInfo {
    pub version: String,
    pub installation: String,
    pub started_at: String,
    /// How applications are reached: `NAME-OWNER.BASE:PORT`.
    pub base_domain: String,
    pub edge: Option<String>,
    pub clouds: Vec<String>,
    /// Which life of the store this is: rises with every restore of a backup, zero until then.
    #[serde(default)]
    pub incarnation: u64,
    /// When a backup was last restored.
    #[serde(default)]
    pub restored_at: Option<String>,
    /// Machines in quarantine; told to operators.
    #[serde(default)]
    pub quarantined: u64,
}

/// A machine that clouds list with our tags and that the restored store does not know.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
pub struct QuarantinedMachine {
    /// The name it was given by whoever asked for it.
    pub machine: MachineId,
    pub cloud: String,
    /// The cloud's name for it.
    pub cloud_id: String,
    /// The application in whose network it is.
    pub application: ApplicationId,
    /// That application's name, if it is known.
    pub application_name: Option<Name>,
    pub hostname: String,
    pub instance_type: String,
    pub address: String,
    pub created_at: String,
    /// When it was put into quarantine.
    pub since: String,
    /// An operator has said that it is to be destroyed.
    pub condemned: bool,
}
