//! Made from openapi/director.json by `cargo run -p conpaas-client --example generate`;
//! changes made by hand are lost.

#![allow(unused_imports)]

use crate::transport::segment;
use crate::{Client, ClientError, Download, Events, Upload};
use conpaas_model::api::*;
use conpaas_model::ids::*;
use conpaas_model::instance::*;
use conpaas_model::spec::*;
use conpaas_model::status::*;
use reqwest::Method;
use serde::{Deserialize, Serialize};

/// What [`Client::list_apps`] may be asked for.
#[derive(Clone, Debug, Default, Serialize)]
pub struct ListAppsQuery {
    /// `next` of the page before.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cursor: Option<String>,
    /// Most items on a page (default 100, at most 1000).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub limit: Option<u32>,
    /// `key=value` or `key`, several by comma.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub label: Option<String>,
    /// Another owner's, for operators; `*` for everybody's.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub owner: Option<String>,
    /// Those in the trash instead.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub trash: Option<bool>,
}

/// What [`Client::delete_app`] may be asked for.
#[derive(Clone, Debug, Default, Serialize)]
pub struct DeleteAppQuery {
    /// For good, rather than into the trash.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub now: Option<bool>,
}

/// What [`Client::list_events`] may be asked for.
#[derive(Clone, Debug, Default, Serialize)]
pub struct ListEventsQuery {
    /// Sequence number after which to begin.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub after: Option<u64>,
    /// `next` of the page before.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cursor: Option<String>,
    /// Most items on a page (default 100, at most 1000).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub limit: Option<u32>,
}

/// What [`Client::app_metrics`] may be asked for.
#[derive(Clone, Debug, Default, Serialize)]
pub struct AppMetricsQuery {
    /// From this moment on (RFC 3339; default: an hour ago).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub since: Option<String>,
    /// Up to this moment (RFC 3339; default: now).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub until: Option<String>,
    /// Seconds of each step: a multiple of 10 for the last day, else of 300 (default: what gives
    /// about a hundred steps).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub step: Option<u32>,
    /// Only of this node (its number or name).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub node: Option<String>,
    /// Only of this role.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub role: Option<String>,
    /// Only this metric, or this family of metrics.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    /// What to tell apart beside services and roles: `node`, `release`, or both by comma.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub by: Option<String>,
}

/// What [`Client::list_app_nodes`] may be asked for.
#[derive(Clone, Debug, Default, Serialize)]
pub struct ListAppNodesQuery {
    /// `next` of the page before.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cursor: Option<String>,
    /// Most items on a page (default 100, at most 1000).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub limit: Option<u32>,
    /// Only in this state, for instance `up`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub state: Option<NodeState>,
    /// Only with this role.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub role: Option<String>,
}

/// What [`Client::list_services`] may be asked for.
#[derive(Clone, Debug, Default, Serialize)]
pub struct ListServicesQuery {
    /// `next` of the page before.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cursor: Option<String>,
    /// Most items on a page (default 100, at most 1000).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub limit: Option<u32>,
    /// `key=value` or `key`, several by comma.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub label: Option<String>,
    /// Only of this service type.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[serde(rename = "type")]
    pub kind: Option<String>,
}

/// What [`Client::list_code`] may be asked for.
#[derive(Clone, Debug, Default, Serialize)]
pub struct ListCodeQuery {
    /// `next` of the page before.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cursor: Option<String>,
    /// Most items on a page (default 100, at most 1000).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub limit: Option<u32>,
}

/// What [`Client::upload_code`] may be asked for.
#[derive(Clone, Debug, Default, Serialize)]
pub struct UploadCodeQuery {
    /// The archive's file name, for people.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub filename: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub description: Option<String>,
    /// Activate it at once.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub activate: Option<bool>,
    /// Take the archive that was sent by `append_upload` under this SHA-256; the body is empty.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub upload: Option<String>,
}

/// What [`Client::activate_code`] may be asked for.
#[derive(Clone, Debug, Default, Serialize)]
pub struct ActivateCodeQuery {
    /// Hold the release and show it at the preview address alone, until it is promoted.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub preview: Option<bool>,
}

/// What [`Client::list_domains`] may be asked for.
#[derive(Clone, Debug, Default, Serialize)]
pub struct ListDomainsQuery {
    /// `next` of the page before.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cursor: Option<String>,
    /// Most items on a page (default 100, at most 1000).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub limit: Option<u32>,
}

/// What [`Client::list_env`] may be asked for.
#[derive(Clone, Debug, Default, Serialize)]
pub struct ListEnvQuery {
    /// `next` of the page before.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cursor: Option<String>,
    /// Most items on a page (default 100, at most 1000).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub limit: Option<u32>,
}

/// What [`Client::read_logs`] may be asked for.
#[derive(Clone, Debug, Default, Serialize)]
pub struct ReadLogsQuery {
    /// Only of this node (its number or name).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub node: Option<String>,
    /// Only of this role.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub role: Option<String>,
    /// Most lines of each log, the newest (default 100, at most 10000; 0: only where they end now).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub lines: Option<u32>,
    /// Only lines that arrived after this moment (RFC 3339).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub since: Option<String>,
    /// Only lines that match this regular expression.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub grep: Option<String>,
    /// Only requests that were answered so: `404`, `5xx`, several by comma.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub status: Option<String>,
    /// `next` of an earlier answer: only lines that arrived after it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cursor: Option<String>,
}

/// What [`Client::service_metrics`] may be asked for.
#[derive(Clone, Debug, Default, Serialize)]
pub struct ServiceMetricsQuery {
    /// From this moment on (RFC 3339; default: an hour ago).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub since: Option<String>,
    /// Up to this moment (RFC 3339; default: now).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub until: Option<String>,
    /// Seconds of each step: a multiple of 10 for the last day, else of 300 (default: what gives
    /// about a hundred steps).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub step: Option<u32>,
    /// Only of this node (its number or name).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub node: Option<String>,
    /// Only of this role.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub role: Option<String>,
    /// Only this metric, or this family of metrics.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    /// What to tell apart beside services and roles: `node`, `release`, or both by comma.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub by: Option<String>,
}

/// What [`Client::list_nodes`] may be asked for.
#[derive(Clone, Debug, Default, Serialize)]
pub struct ListNodesQuery {
    /// `next` of the page before.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cursor: Option<String>,
    /// Most items on a page (default 100, at most 1000).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub limit: Option<u32>,
    /// Only in this state, for instance `up`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub state: Option<NodeState>,
    /// Only with this role.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub role: Option<String>,
}

/// What [`Client::list_releases`] may be asked for.
#[derive(Clone, Debug, Default, Serialize)]
pub struct ListReleasesQuery {
    /// `next` of the page before.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cursor: Option<String>,
    /// Most items on a page (default 100, at most 1000).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub limit: Option<u32>,
}

/// What [`Client::list_secrets`] may be asked for.
#[derive(Clone, Debug, Default, Serialize)]
pub struct ListSecretsQuery {
    /// `next` of the page before.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cursor: Option<String>,
    /// Most items on a page (default 100, at most 1000).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub limit: Option<u32>,
}

/// What [`Client::append_upload`] may be asked for.
#[derive(Clone, Debug, Default, Serialize)]
pub struct AppendUploadQuery {
    /// Bytes of the whole archive.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub size: Option<u64>,
    /// Where this piece begins: what `show_upload` answered.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub offset: Option<u64>,
}

/// What [`Client::list_audit`] may be asked for.
#[derive(Clone, Debug, Default, Serialize)]
pub struct ListAuditQuery {
    /// `next` of the page before.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cursor: Option<String>,
    /// Most items on a page (default 100, at most 1000).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub limit: Option<u32>,
    /// Only what this user did.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub actor: Option<String>,
    /// Only this operation of the API, for instance `delete_app`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub action: Option<String>,
}

/// What [`Client::list_clouds`] may be asked for.
#[derive(Clone, Debug, Default, Serialize)]
pub struct ListCloudsQuery {
    /// `next` of the page before.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cursor: Option<String>,
    /// Most items on a page (default 100, at most 1000).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub limit: Option<u32>,
}

/// What [`Client::list_quarantine`] may be asked for.
#[derive(Clone, Debug, Default, Serialize)]
pub struct ListQuarantineQuery {
    /// `next` of the page before.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cursor: Option<String>,
    /// Most items on a page (default 100, at most 1000).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub limit: Option<u32>,
}

/// What [`Client::list_roots`] may be asked for.
#[derive(Clone, Debug, Default, Serialize)]
pub struct ListRootsQuery {
    /// `next` of the page before.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cursor: Option<String>,
    /// Most items on a page (default 100, at most 1000).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub limit: Option<u32>,
}

/// What [`Client::list_instance_types`] may be asked for.
#[derive(Clone, Debug, Default, Serialize)]
pub struct ListInstanceTypesQuery {
    /// `next` of the page before.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cursor: Option<String>,
    /// Most items on a page (default 100, at most 1000).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub limit: Option<u32>,
}

/// What [`Client::list_operations`] may be asked for.
#[derive(Clone, Debug, Default, Serialize)]
pub struct ListOperationsQuery {
    /// Only of this application (NAME, OWNER:NAME or id).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub app: Option<String>,
    /// Only of this service of that application.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub service: Option<String>,
    /// Only with this outcome, for instance `running`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub outcome: Option<Outcome>,
    /// `next` of the page before.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cursor: Option<String>,
    /// Most items on a page (default 100, at most 1000).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub limit: Option<u32>,
}

/// What [`Client::list_service_types`] may be asked for.
#[derive(Clone, Debug, Default, Serialize)]
pub struct ListServiceTypesQuery {
    /// `next` of the page before.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cursor: Option<String>,
    /// Most items on a page (default 100, at most 1000).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub limit: Option<u32>,
}

/// What [`Client::list_tokens`] may be asked for.
#[derive(Clone, Debug, Default, Serialize)]
pub struct ListTokensQuery {
    /// `next` of the page before.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cursor: Option<String>,
    /// Most items on a page (default 100, at most 1000).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub limit: Option<u32>,
}

/// What [`Client::list_users`] may be asked for.
#[derive(Clone, Debug, Default, Serialize)]
pub struct ListUsersQuery {
    /// `next` of the page before.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cursor: Option<String>,
    /// Most items on a page (default 100, at most 1000).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub limit: Option<u32>,
}

impl Client {
    /// Lead people to a code version: makes a release.
    ///
    /// `POST /v1/apps/{app}/services/{service}/code/{code}/activate`
    pub async fn activate_code(&self, app: &str, service: &str, code: &str, query: &ActivateCodeQuery) -> Result<Accepted, ClientError> {
        self.call(Method::POST, &format!("/v1/apps/{}/services/{}/code/{}/activate", segment(app), segment(service), segment(code))).query(query).keyed().guarded(self).answer().await
    }

    /// Claim a host name: whoever asks the edge for it is led to this service.
    ///
    /// `POST /v1/apps/{app}/services/{service}/domains`
    pub async fn add_domain(&self, app: &str, service: &str, body: &DomainAdd) -> Result<Domain, ClientError> {
        self.call(Method::POST, &format!("/v1/apps/{}/services/{}/domains", segment(app), segment(service))).json(body).keyed().guarded(self).answer().await
    }

    /// Make a root that signs as soon as everybody trusts it.
    ///
    /// `POST /v1/director/roots`
    pub async fn add_root(&self) -> Result<RootInfo, ClientError> {
        self.call(Method::POST, "/v1/director/roots").keyed().answer().await
    }

    /// What was measured of an application's services, in steps of time; the last day in fine steps,
    /// a month in coarse ones.
    ///
    /// `GET /v1/apps/{app}/metrics`
    pub async fn app_metrics(&self, app: &str, query: &AppMetricsQuery) -> Result<Metrics, ClientError> {
        self.call(Method::GET, &format!("/v1/apps/{}/metrics", segment(app))).query(query).answer().await
    }

    /// Send an archive, or what is missing of it. What came in before it breaks off stays. When all of it
    /// is there, `upload_code` with `upload` makes it a code version.
    ///
    /// `PATCH /v1/apps/{app}/services/{service}/uploads/{sha256}`
    pub async fn append_upload(&self, app: &str, service: &str, sha256: &str, query: &AppendUploadQuery, upload: Upload) -> Result<UploadProgress, ClientError> {
        self.call(Method::PATCH, &format!("/v1/apps/{}/services/{}/uploads/{}", segment(app), segment(service), segment(sha256))).query(query).upload(upload).bulk_answer().await
    }

    /// Run a command of the service's type.
    ///
    /// `POST /v1/apps/{app}/services/{service}/commands/{command}`
    pub async fn call_command(&self, app: &str, service: &str, command: &str, body: &CommandCall) -> Result<CommandAnswer, ClientError> {
        self.call(Method::POST, &format!("/v1/apps/{}/services/{}/commands/{}", segment(app), segment(service), segment(command))).json(body).keyed().answer().await
    }

    /// End an operation and wish what was wanted before.
    ///
    /// `POST /v1/operations/{operation}/cancel`
    pub async fn cancel_operation(&self, operation: &str) -> Result<Operation, ClientError> {
        self.call(Method::POST, &format!("/v1/operations/{}/cancel", segment(operation))).keyed().answer().await
    }

    /// Change a password; other tokens of that user end.
    ///
    /// `POST /v1/users/{user}/password`
    pub async fn change_password(&self, user: &str, body: &PasswordChange) -> Result<(), ClientError> {
        self.call(Method::POST, &format!("/v1/users/{}/password", segment(user))).json(body).keyed().guarded(self).done().await
    }

    /// Create an application.
    ///
    /// `POST /v1/apps`
    pub async fn create_app(&self, body: &AppCreate) -> Result<App, ClientError> {
        self.call(Method::POST, "/v1/apps").json(body).keyed().answer().await
    }

    /// Add a service to an application.
    ///
    /// `POST /v1/apps/{app}/services`
    pub async fn create_service(&self, app: &str, body: &ServiceCreate) -> Result<Service, ClientError> {
        self.call(Method::POST, &format!("/v1/apps/{}/services", segment(app))).json(body).keyed().guarded(self).answer().await
    }

    /// Make a token, for instance for a program.
    ///
    /// `POST /v1/tokens`
    pub async fn create_token(&self, body: &TokenCreate) -> Result<NewToken, ClientError> {
        self.call(Method::POST, "/v1/tokens").json(body).keyed().answer().await
    }

    /// Add a user.
    ///
    /// `POST /v1/users`
    pub async fn create_user(&self, body: &UserCreate) -> Result<User, ClientError> {
        self.call(Method::POST, "/v1/users").json(body).keyed().answer().await
    }

    /// Stop an application and put it into the trash, or destroy it with everything in it.
    ///
    /// `DELETE /v1/apps/{app}`
    pub async fn delete_app(&self, app: &str, query: &DeleteAppQuery) -> Result<Accepted, ClientError> {
        self.call(Method::DELETE, &format!("/v1/apps/{}", segment(app))).query(query).guarded(self).answer().await
    }

    /// Delete a code version that is neither active nor held for a preview.
    ///
    /// `DELETE /v1/apps/{app}/services/{service}/code/{code}`
    pub async fn delete_code(&self, app: &str, service: &str, code: &str) -> Result<(), ClientError> {
        self.call(Method::DELETE, &format!("/v1/apps/{}/services/{}/code/{}", segment(app), segment(service), segment(code))).guarded(self).done().await
    }

    /// Destroy a service with its code versions and history.
    ///
    /// `DELETE /v1/apps/{app}/services/{service}`
    pub async fn delete_service(&self, app: &str, service: &str) -> Result<Accepted, ClientError> {
        self.call(Method::DELETE, &format!("/v1/apps/{}/services/{}", segment(app), segment(service))).guarded(self).answer().await
    }

    /// Remove a user who has no applications.
    ///
    /// `DELETE /v1/users/{user}`
    pub async fn delete_user(&self, user: &str) -> Result<(), ClientError> {
        self.call(Method::DELETE, &format!("/v1/users/{}", segment(user))).guarded(self).done().await
    }

    /// Say that a machine in quarantine is to be destroyed. It is listed until its cloud says that it
    /// is gone.
    ///
    /// `DELETE /v1/director/quarantine/{machine}`
    pub async fn destroy_quarantined(&self, machine: &str) -> Result<(), ClientError> {
        self.call(Method::DELETE, &format!("/v1/director/quarantine/{}", segment(machine))).done().await
    }

    /// The Director and its installation.
    ///
    /// `GET /v1/director`
    pub async fn director_info(&self) -> Result<DirectorInfo, ClientError> {
        self.call(Method::GET, "/v1/director").answer().await
    }

    /// What the Director measures of itself, in the format of Prometheus.
    ///
    /// `GET /metrics`
    pub async fn director_metrics(&self) -> Result<Download, ClientError> {
        self.call(Method::GET, "/metrics").download().await
    }

    /// Hold no release for a preview any more.
    ///
    /// `DELETE /v1/apps/{app}/services/{service}/preview`
    pub async fn discard_preview(&self, app: &str, service: &str) -> Result<Accepted, ClientError> {
        self.call(Method::DELETE, &format!("/v1/apps/{}/services/{}/preview", segment(app), segment(service))).guarded(self).answer().await
    }

    /// Forget what is there of an upload.
    ///
    /// `DELETE /v1/apps/{app}/services/{service}/uploads/{sha256}`
    pub async fn discard_upload(&self, app: &str, service: &str, sha256: &str) -> Result<(), ClientError> {
        self.call(Method::DELETE, &format!("/v1/apps/{}/services/{}/uploads/{}", segment(app), segment(service), segment(sha256))).done().await
    }

    /// Download an archive, byte for byte as it was uploaded.
    ///
    /// `GET /v1/apps/{app}/services/{service}/code/{code}/archive`
    pub async fn download_code(&self, app: &str, service: &str, code: &str) -> Result<Download, ClientError> {
        self.call(Method::GET, &format!("/v1/apps/{}/services/{}/code/{}/archive", segment(app), segment(service), segment(code))).download().await
    }

    /// Whether the Director can serve: its store takes a write. The same as `/v1/healthz`, where
    /// others' tools look for it.
    ///
    /// `GET /healthz`
    pub async fn health(&self) -> Result<(), ClientError> {
        self.call(Method::GET, "/healthz").done().await
    }

    /// Whether the Director can serve: its store takes a write.
    ///
    /// `GET /v1/healthz`
    pub async fn healthz(&self) -> Result<(), ClientError> {
        self.call(Method::GET, "/v1/healthz").done().await
    }

    /// All nodes of an application, managers' included.
    ///
    /// `GET /v1/apps/{app}/nodes`
    pub async fn list_app_nodes(&self, app: &str, query: &ListAppNodesQuery) -> Result<Page<Node>, ClientError> {
        self.call(Method::GET, &format!("/v1/apps/{}/nodes", segment(app))).query(query).answer().await
    }

    /// Applications.
    ///
    /// `GET /v1/apps`
    pub async fn list_apps(&self, query: &ListAppsQuery) -> Result<Page<App>, ClientError> {
        self.call(Method::GET, "/v1/apps").query(query).answer().await
    }

    /// Who changed what, newest first.
    ///
    /// `GET /v1/audit`
    pub async fn list_audit(&self, query: &ListAuditQuery) -> Result<Page<AuditRow>, ClientError> {
        self.call(Method::GET, "/v1/audit").query(query).answer().await
    }

    /// Where machines come from. How many there are is for operators.
    ///
    /// `GET /v1/clouds`
    pub async fn list_clouds(&self, query: &ListCloudsQuery) -> Result<Page<CloudInfo>, ClientError> {
        self.call(Method::GET, "/v1/clouds").query(query).answer().await
    }

    /// Code versions, newest first.
    ///
    /// `GET /v1/apps/{app}/services/{service}/code`
    pub async fn list_code(&self, app: &str, service: &str, query: &ListCodeQuery) -> Result<Page<Code>, ClientError> {
        self.call(Method::GET, &format!("/v1/apps/{}/services/{}/code", segment(app), segment(service))).query(query).answer().await
    }

    /// Host names that lead to a service beside its own, by name.
    ///
    /// `GET /v1/apps/{app}/services/{service}/domains`
    pub async fn list_domains(&self, app: &str, service: &str, query: &ListDomainsQuery) -> Result<Page<Domain>, ClientError> {
        self.call(Method::GET, &format!("/v1/apps/{}/services/{}/domains", segment(app), segment(service))).query(query).answer().await
    }

    /// Variables of the environment, by name.
    ///
    /// `GET /v1/apps/{app}/services/{service}/env`
    pub async fn list_env(&self, app: &str, service: &str, query: &ListEnvQuery) -> Result<Page<Variable>, ClientError> {
        self.call(Method::GET, &format!("/v1/apps/{}/services/{}/env", segment(app), segment(service))).query(query).answer().await
    }

    /// What happened to an application, oldest first.
    ///
    /// `GET /v1/apps/{app}/events`
    pub async fn list_events(&self, app: &str, query: &ListEventsQuery) -> Result<Page<Event>, ClientError> {
        self.call(Method::GET, &format!("/v1/apps/{}/events", segment(app))).query(query).answer().await
    }

    /// Sizes of machines.
    ///
    /// `GET /v1/instance-types`
    pub async fn list_instance_types(&self, query: &ListInstanceTypesQuery) -> Result<Page<InstanceType>, ClientError> {
        self.call(Method::GET, "/v1/instance-types").query(query).answer().await
    }

    /// The nodes of a service.
    ///
    /// `GET /v1/apps/{app}/services/{service}/nodes`
    pub async fn list_nodes(&self, app: &str, service: &str, query: &ListNodesQuery) -> Result<Page<Node>, ClientError> {
        self.call(Method::GET, &format!("/v1/apps/{}/services/{}/nodes", segment(app), segment(service))).query(query).answer().await
    }

    /// Operations, newest first.
    ///
    /// `GET /v1/operations`
    pub async fn list_operations(&self, query: &ListOperationsQuery) -> Result<Page<Operation>, ClientError> {
        self.call(Method::GET, "/v1/operations").query(query).answer().await
    }

    /// Machines in quarantine, oldest first: made after the backup that was restored, and left alone.
    ///
    /// `GET /v1/director/quarantine`
    pub async fn list_quarantine(&self, query: &ListQuarantineQuery) -> Result<Page<QuarantinedMachine>, ClientError> {
        self.call(Method::GET, "/v1/director/quarantine").query(query).answer().await
    }

    /// Releases, newest first.
    ///
    /// `GET /v1/apps/{app}/services/{service}/releases`
    pub async fn list_releases(&self, app: &str, service: &str, query: &ListReleasesQuery) -> Result<Page<ReleaseInfo>, ClientError> {
        self.call(Method::GET, &format!("/v1/apps/{}/services/{}/releases", segment(app), segment(service))).query(query).answer().await
    }

    /// Roots that everybody trusts, and how far a change of them is.
    ///
    /// `GET /v1/director/roots`
    pub async fn list_roots(&self, query: &ListRootsQuery) -> Result<Page<RootInfo>, ClientError> {
        self.call(Method::GET, "/v1/director/roots").query(query).answer().await
    }

    /// Secrets by name: which version there is, since when, by whom. Their values are not told.
    ///
    /// `GET /v1/apps/{app}/services/{service}/secrets`
    pub async fn list_secrets(&self, app: &str, service: &str, query: &ListSecretsQuery) -> Result<Page<SecretInfo>, ClientError> {
        self.call(Method::GET, &format!("/v1/apps/{}/services/{}/secrets", segment(app), segment(service))).query(query).answer().await
    }

    /// Types of services one can add.
    ///
    /// `GET /v1/service-types`
    pub async fn list_service_types(&self, query: &ListServiceTypesQuery) -> Result<Page<ServiceTypeInfo>, ClientError> {
        self.call(Method::GET, "/v1/service-types").query(query).answer().await
    }

    /// The services of an application, by name.
    ///
    /// `GET /v1/apps/{app}/services`
    pub async fn list_services(&self, app: &str, query: &ListServicesQuery) -> Result<Page<Service>, ClientError> {
        self.call(Method::GET, &format!("/v1/apps/{}/services", segment(app))).query(query).answer().await
    }

    /// One's own tokens.
    ///
    /// `GET /v1/tokens`
    pub async fn list_tokens(&self, query: &ListTokensQuery) -> Result<Page<Token>, ClientError> {
        self.call(Method::GET, "/v1/tokens").query(query).answer().await
    }

    /// All users.
    ///
    /// `GET /v1/users`
    pub async fn list_users(&self, query: &ListUsersQuery) -> Result<Page<User>, ClientError> {
        self.call(Method::GET, "/v1/users").query(query).answer().await
    }

    /// Log in with name and password; gives a token.
    ///
    /// `POST /v1/login`
    pub async fn login(&self, body: &Login) -> Result<NewToken, ClientError> {
        self.call(Method::POST, "/v1/login").json(body).answer().await
    }

    /// Revoke the token this request was made with.
    ///
    /// `POST /v1/logout`
    pub async fn logout(&self) -> Result<(), ClientError> {
        self.call(Method::POST, "/v1/logout").done().await
    }

    /// The description of this API.
    ///
    /// `GET /v1/openapi.json`
    pub async fn openapi_document(&self) -> Result<serde_json::Value, ClientError> {
        self.call(Method::GET, "/v1/openapi.json").answer().await
    }

    /// What is measured now of all one's services, in the format of Prometheus.
    ///
    /// `GET /v1/metrics`
    pub async fn owner_metrics(&self) -> Result<Download, ClientError> {
        self.call(Method::GET, "/v1/metrics").download().await
    }

    /// Lead everybody to the release that is held for a preview.
    ///
    /// `POST /v1/apps/{app}/services/{service}/promote`
    pub async fn promote_service(&self, app: &str, service: &str) -> Result<Accepted, ClientError> {
        self.call(Method::POST, &format!("/v1/apps/{}/services/{}/promote", segment(app), segment(service))).keyed().guarded(self).answer().await
    }

    /// The lines of the daemons' logs, oldest first. They stay when the node has gone.
    ///
    /// `GET /v1/apps/{app}/services/{service}/logs`
    pub async fn read_logs(&self, app: &str, service: &str, query: &ReadLogsQuery) -> Result<Page<LogLine>, ClientError> {
        self.call(Method::GET, &format!("/v1/apps/{}/services/{}/logs", segment(app), segment(service))).query(query).answer().await
    }

    /// Give a host name up.
    ///
    /// `DELETE /v1/apps/{app}/services/{service}/domains/{domain}`
    pub async fn remove_domain(&self, app: &str, service: &str, domain: &str) -> Result<(), ClientError> {
        self.call(Method::DELETE, &format!("/v1/apps/{}/services/{}/domains/{}", segment(app), segment(service), segment(domain))).guarded(self).done().await
    }

    /// Let a node go; another comes in its stead.
    ///
    /// `POST /v1/apps/{app}/services/{service}/nodes/{node}/replace`
    pub async fn replace_node(&self, app: &str, service: &str, node: &str) -> Result<Accepted, ClientError> {
        self.call(Method::POST, &format!("/v1/apps/{}/services/{}/nodes/{}/replace", segment(app), segment(service), segment(node))).keyed().guarded(self).answer().await
    }

    /// Bring an application back from the trash, stopped.
    ///
    /// `POST /v1/apps/{app}/restore`
    pub async fn restore_app(&self, app: &str, body: &Restore) -> Result<App, ClientError> {
        self.call(Method::POST, &format!("/v1/apps/{}/restore", segment(app))).json(body).keyed().guarded(self).answer().await
    }

    /// Trust a root no more. Refused while anybody needs it.
    ///
    /// `DELETE /v1/director/roots/{root}`
    pub async fn retire_root(&self, root: &str) -> Result<(), ClientError> {
        self.call(Method::DELETE, &format!("/v1/director/roots/{}", segment(root))).done().await
    }

    /// End a token.
    ///
    /// `DELETE /v1/tokens/{token}`
    pub async fn revoke_token(&self, token: &str) -> Result<(), ClientError> {
        self.call(Method::DELETE, &format!("/v1/tokens/{}", segment(token))).done().await
    }

    /// Take an older release's code, settings, environment and secrets again, as a new release.
    ///
    /// `POST /v1/apps/{app}/services/{service}/rollback`
    pub async fn rollback_service(&self, app: &str, service: &str, body: &Rollback) -> Result<Accepted, ClientError> {
        self.call(Method::POST, &format!("/v1/apps/{}/services/{}/rollback", segment(app), segment(service))).json(body).keyed().guarded(self).answer().await
    }

    /// Change how many nodes roles have.
    ///
    /// `POST /v1/apps/{app}/services/{service}/scale`
    pub async fn scale_service(&self, app: &str, service: &str, body: &Scale) -> Result<Accepted, ClientError> {
        self.call(Method::POST, &format!("/v1/apps/{}/services/{}/scale", segment(app), segment(service))).json(body).keyed().guarded(self).answer().await
    }

    /// What was measured of a service, in steps of time.
    ///
    /// `GET /v1/apps/{app}/services/{service}/metrics`
    pub async fn service_metrics(&self, app: &str, service: &str, query: &ServiceMetricsQuery) -> Result<Metrics, ClientError> {
        self.call(Method::GET, &format!("/v1/apps/{}/services/{}/metrics", segment(app), segment(service))).query(query).answer().await
    }

    /// Set and unset variables: makes a release.
    ///
    /// `PATCH /v1/apps/{app}/services/{service}/env`
    pub async fn set_env(&self, app: &str, service: &str, body: &EnvironmentChange) -> Result<Accepted, ClientError> {
        self.call(Method::PATCH, &format!("/v1/apps/{}/services/{}/env", segment(app), segment(service))).json(body).keyed().guarded(self).answer().await
    }

    /// Set how many nodes a user may have at once.
    ///
    /// `PATCH /v1/users/{user}`
    pub async fn set_quota(&self, user: &str, body: &QuotaChange) -> Result<User, ClientError> {
        self.call(Method::PATCH, &format!("/v1/users/{}", segment(user))).json(body).guarded(self).answer().await
    }

    /// Set a secret: its value becomes a new version, and a release names it.
    ///
    /// `PUT /v1/apps/{app}/services/{service}/secrets/{secret}`
    pub async fn set_secret(&self, app: &str, service: &str, secret: &str, body: &SecretChange) -> Result<Accepted, ClientError> {
        self.call(Method::PUT, &format!("/v1/apps/{}/services/{}/secrets/{}", segment(app), segment(service), segment(secret))).json(body).keyed().guarded(self).answer().await
    }

    /// Change settings: makes a release.
    ///
    /// `PATCH /v1/apps/{app}/services/{service}/settings`
    pub async fn set_settings(&self, app: &str, service: &str, body: &SettingsChange) -> Result<Accepted, ClientError> {
        self.call(Method::PATCH, &format!("/v1/apps/{}/services/{}/settings", segment(app), segment(service))).json(body).keyed().guarded(self).answer().await
    }

    /// One application.
    ///
    /// `GET /v1/apps/{app}`
    pub async fn show_app(&self, app: &str) -> Result<App, ClientError> {
        self.call(Method::GET, &format!("/v1/apps/{}", segment(app))).answer().await
    }

    /// One node.
    ///
    /// `GET /v1/apps/{app}/services/{service}/nodes/{node}`
    pub async fn show_node(&self, app: &str, service: &str, node: &str) -> Result<Node, ClientError> {
        self.call(Method::GET, &format!("/v1/apps/{}/services/{}/nodes/{}", segment(app), segment(service), segment(node))).answer().await
    }

    /// One operation.
    ///
    /// `GET /v1/operations/{operation}`
    pub async fn show_operation(&self, operation: &str) -> Result<Operation, ClientError> {
        self.call(Method::GET, &format!("/v1/operations/{}", segment(operation))).answer().await
    }

    /// One service.
    ///
    /// `GET /v1/apps/{app}/services/{service}`
    pub async fn show_service(&self, app: &str, service: &str) -> Result<Service, ClientError> {
        self.call(Method::GET, &format!("/v1/apps/{}/services/{}", segment(app), segment(service))).answer().await
    }

    /// How much of an upload is there.
    ///
    /// `GET /v1/apps/{app}/services/{service}/uploads/{sha256}`
    pub async fn show_upload(&self, app: &str, service: &str, sha256: &str) -> Result<UploadProgress, ClientError> {
        self.call(Method::GET, &format!("/v1/apps/{}/services/{}/uploads/{}", segment(app), segment(service), segment(sha256))).answer().await
    }

    /// One user: oneself, or any for an operator.
    ///
    /// `GET /v1/users/{user}`
    pub async fn show_user(&self, user: &str) -> Result<User, ClientError> {
        self.call(Method::GET, &format!("/v1/users/{}", segment(user))).answer().await
    }

    /// Start an application with all its services.
    ///
    /// `POST /v1/apps/{app}/start`
    pub async fn start_app(&self, app: &str) -> Result<Accepted, ClientError> {
        self.call(Method::POST, &format!("/v1/apps/{}/start", segment(app))).keyed().guarded(self).answer().await
    }

    /// Start a service.
    ///
    /// `POST /v1/apps/{app}/services/{service}/start`
    pub async fn start_service(&self, app: &str, service: &str) -> Result<Accepted, ClientError> {
        self.call(Method::POST, &format!("/v1/apps/{}/services/{}/start", segment(app), segment(service))).keyed().guarded(self).answer().await
    }

    /// Stop an application; configuration, code versions and history stay.
    ///
    /// `POST /v1/apps/{app}/stop`
    pub async fn stop_app(&self, app: &str) -> Result<Accepted, ClientError> {
        self.call(Method::POST, &format!("/v1/apps/{}/stop", segment(app))).keyed().guarded(self).answer().await
    }

    /// Stop a service; configuration, code versions and history stay.
    ///
    /// `POST /v1/apps/{app}/services/{service}/stop`
    pub async fn stop_service(&self, app: &str, service: &str) -> Result<Accepted, ClientError> {
        self.call(Method::POST, &format!("/v1/apps/{}/services/{}/stop", segment(app), segment(service))).keyed().guarded(self).answer().await
    }

    /// An application's events as they happen; `Last-Event-ID` is the last sequence number seen.
    ///
    /// `GET /v1/apps/{app}/events/stream`
    pub async fn stream_events(&self, app: &str, last_event: Option<&str>) -> Result<Events<Event>, ClientError> {
        self.call(Method::GET, &format!("/v1/apps/{}/events/stream", segment(app))).last_event(last_event).events().await
    }

    /// An operation, whole, on each change; the stream ends after its outcome.
    ///
    /// `GET /v1/operations/{operation}/stream`
    pub async fn stream_operation(&self, operation: &str, last_event: Option<&str>) -> Result<Events<Operation>, ClientError> {
        self.call(Method::GET, &format!("/v1/operations/{}/stream", segment(operation))).last_event(last_event).events().await
    }

    /// Unset a secret: a release without it. Going back to an older release takes it back, too.
    ///
    /// `DELETE /v1/apps/{app}/services/{service}/secrets/{secret}`
    pub async fn unset_secret(&self, app: &str, service: &str, secret: &str) -> Result<Accepted, ClientError> {
        self.call(Method::DELETE, &format!("/v1/apps/{}/services/{}/secrets/{}", segment(app), segment(service), segment(secret))).keyed().guarded(self).answer().await
    }

    /// Rename or relabel an application, or change its way out.
    ///
    /// `PATCH /v1/apps/{app}`
    pub async fn update_app(&self, app: &str, body: &AppUpdate) -> Result<App, ClientError> {
        self.call(Method::PATCH, &format!("/v1/apps/{}", segment(app))).json(body).guarded(self).answer().await
    }

    /// Rename or relabel a service.
    ///
    /// `PATCH /v1/apps/{app}/services/{service}`
    pub async fn update_service(&self, app: &str, service: &str, body: &Rename) -> Result<Service, ClientError> {
        self.call(Method::PATCH, &format!("/v1/apps/{}/services/{}", segment(app), segment(service))).json(body).guarded(self).answer().await
    }

    /// Replace nodes that are made of an older image or program, a few at a time, without a request lost.
    ///
    /// `POST /v1/apps/{app}/upgrade`
    pub async fn upgrade_app(&self, app: &str, body: &AppUpgrade) -> Result<Accepted, ClientError> {
        self.call(Method::POST, &format!("/v1/apps/{}/upgrade", segment(app))).json(body).keyed().guarded(self).answer().await
    }

    /// Upload an archive (tar, tar.gz, tar.bz2, tar.xz, tar.zst or zip).
    ///
    /// `POST /v1/apps/{app}/services/{service}/code`
    pub async fn upload_code(&self, app: &str, service: &str, query: &UploadCodeQuery, upload: Upload) -> Result<Code, ClientError> {
        self.call(Method::POST, &format!("/v1/apps/{}/services/{}/code", segment(app), segment(service))).query(query).upload(upload).guarded(self).bulk_answer().await
    }

    /// Which version answers. Says no more to the public.
    ///
    /// `GET /v1/version`
    pub async fn version(&self) -> Result<DirectorInfo, ClientError> {
        self.call(Method::GET, "/v1/version").answer().await
    }

    /// Who one is.
    ///
    /// `GET /v1/whoami`
    pub async fn whoami(&self) -> Result<User, ClientError> {
        self.call(Method::GET, "/v1/whoami").answer().await
    }
}
