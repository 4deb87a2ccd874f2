//! Who may call what: one table. What is missing in it is refused.

/// Who may call an endpoint.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Access {
    /// Anybody.
    Public,
    /// Whoever has a valid token.
    LoggedIn,
    /// The owner of what the path names (an operator too); to others it does not exist.
    Owner,
    /// Operators.
    Operator,
}

use Access::{LoggedIn, Operator, Owner, Public};

/// Every operation of the API, by its id.
pub const TABLE: &[(&str, Access)] = &[
    ("login", Public),
    ("logout", LoggedIn),
    ("whoami", LoggedIn),
    ("version", Public),
    ("healthz", Public),
    ("health", Public),
    ("openapi_document", Public),
    ("list_users", Operator),
    ("create_user", Operator),
    ("show_user", Owner),
    ("delete_user", Operator),
    ("change_password", Owner),
    ("set_quota", Operator),
    ("list_tokens", LoggedIn),
    ("create_token", LoggedIn),
    ("revoke_token", Owner),
    ("list_apps", LoggedIn),
    ("create_app", LoggedIn),
    ("show_app", Owner),
    ("update_app", Owner),
    ("delete_app", Owner),
    ("restore_app", Owner),
    ("start_app", Owner),
    ("stop_app", Owner),
    ("upgrade_app", Owner),
    ("list_events", Owner),
    ("stream_events", Owner),
    ("list_app_nodes", Owner),
    ("list_services", Owner),
    ("create_service", Owner),
    ("show_service", Owner),
    ("update_service", Owner),
    ("delete_service", Owner),
    ("start_service", Owner),
    ("stop_service", Owner),
    ("scale_service", Owner),
    ("set_settings", Owner),
    ("list_env", Owner),
    ("set_env", Owner),
    ("list_secrets", Owner),
    ("set_secret", Owner),
    ("unset_secret", Owner),
    ("list_releases", Owner),
    ("rollback_service", Owner),
    ("promote_service", Owner),
    ("discard_preview", Owner),
    ("list_domains", Owner),
    ("add_domain", Owner),
    ("remove_domain", Owner),
    ("list_code", Owner),
    ("upload_code", Owner),
    ("download_code", Owner),
    ("delete_code", Owner),
    ("activate_code", Owner),
    ("show_upload", Owner),
    ("append_upload", Owner),
    ("discard_upload", Owner),
    ("call_command", Owner),
    ("list_nodes", Owner),
    ("show_node", Owner),
    ("replace_node", Owner),
    ("read_logs", Owner),
    ("app_metrics", Owner),
    ("service_metrics", Owner),
    ("owner_metrics", LoggedIn),
    ("director_metrics", Operator),
    ("list_operations", LoggedIn),
    ("show_operation", Owner),
    ("stream_operation", Owner),
    ("cancel_operation", Owner),
    ("list_service_types", LoggedIn),
    ("list_instance_types", LoggedIn),
    ("list_clouds", LoggedIn),
    ("director_info", LoggedIn),
    ("list_audit", Operator),
    ("list_roots", Operator),
    ("add_root", Operator),
    ("retire_root", Operator),
    ("list_quarantine", Operator),
    ("destroy_quarantined", Operator),
];

/// Who may call an operation; `None` for one that nobody entered here.
pub fn of(operation_id: &str) -> Option<Access> {
    TABLE
        .iter()
        .find(|(id, _)| *id == operation_id)
        .map(|(_, access)| *access)
}
