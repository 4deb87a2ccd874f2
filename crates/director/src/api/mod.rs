//! The API for people: HTTP with JSON under `/v1`, described by an OpenAPI document that is made
//! from this code. What a request may do passes `gate` first; what it means is `life`'s business.

mod answer;
mod apps;
mod code;
mod conditional;
mod domains;
mod environment;
mod gate;
mod info;
mod logs;
mod metrics;
mod nodes;
mod operations;
mod people;
mod quarantine;
mod repeat;
mod roots;
mod serve;
mod services;
mod stream;
mod take;
mod uploads;
mod views;

pub use answer::status;
pub use serve::{ApiTls, bind, serve};

use crate::shared::Shared;
use axum::Router;
use std::collections::HashMap;
use std::sync::Arc;
use utoipa::openapi::path::{ParameterBuilder, ParameterIn};
use utoipa::openapi::schema::{ObjectBuilder, Type};
use utoipa::openapi::security::{HttpAuthScheme, HttpBuilder, SecurityScheme};
use utoipa::openapi::{ComponentsBuilder, Content, OpenApi, Ref, RefOr, Required, ResponseBuilder};
use utoipa::{PartialSchema, ToSchema};
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

/// Largest JSON body taken, in bytes.
const MAX_JSON: usize = 1 << 20;

fn routes() -> OpenApiRouter<Arc<Shared>> {
    OpenApiRouter::new()
        .routes(routes!(people::login))
        .routes(routes!(people::logout))
        .routes(routes!(people::whoami))
        .routes(routes!(people::list_users, people::create_user))
        .routes(routes!(
            people::show_user,
            people::delete_user,
            people::set_quota
        ))
        .routes(routes!(people::change_password))
        .routes(routes!(people::list_tokens, people::create_token))
        .routes(routes!(people::revoke_token))
        .routes(routes!(info::version))
        .routes(routes!(info::healthz))
        .routes(routes!(info::health))
        .routes(routes!(metrics::director_metrics))
        .routes(routes!(metrics::owner_metrics))
        .routes(routes!(info::openapi_document))
        .routes(routes!(info::director_info))
        .routes(routes!(roots::list_roots, roots::add_root))
        .routes(routes!(roots::retire_root))
        .routes(routes!(quarantine::list_quarantine))
        .routes(routes!(quarantine::destroy_quarantined))
        .routes(routes!(info::list_service_types))
        .routes(routes!(info::list_instance_types))
        .routes(routes!(info::list_clouds))
        .routes(routes!(info::list_audit))
        .routes(routes!(apps::list_apps, apps::create_app))
        .routes(routes!(apps::show_app, apps::update_app, apps::delete_app))
        .routes(routes!(apps::restore_app))
        .routes(routes!(apps::start_app))
        .routes(routes!(apps::stop_app))
        .routes(routes!(apps::upgrade_app))
        .routes(routes!(apps::list_events))
        .routes(routes!(stream::stream_events))
        .routes(routes!(nodes::list_app_nodes))
        .routes(routes!(metrics::app_metrics))
        .routes(routes!(services::list_services, services::create_service))
        .routes(routes!(
            services::show_service,
            services::update_service,
            services::delete_service
        ))
        .routes(routes!(services::start_service))
        .routes(routes!(services::stop_service))
        .routes(routes!(services::scale_service))
        .routes(routes!(services::set_settings))
        .routes(routes!(environment::list_env, environment::set_env))
        .routes(routes!(environment::list_secrets))
        .routes(routes!(environment::set_secret, environment::unset_secret))
        .routes(routes!(services::list_releases))
        .routes(routes!(services::rollback_service))
        .routes(routes!(services::promote_service))
        .routes(routes!(services::discard_preview))
        .routes(routes!(services::call_command))
        .routes(routes!(domains::list_domains, domains::add_domain))
        .routes(routes!(domains::remove_domain))
        .routes(routes!(logs::read_logs))
        .routes(routes!(metrics::service_metrics))
        .routes(routes!(code::list_code, code::upload_code))
        .routes(routes!(
            uploads::show_upload,
            uploads::append_upload,
            uploads::discard_upload
        ))
        .routes(routes!(code::download_code))
        .routes(routes!(code::delete_code))
        .routes(routes!(code::activate_code))
        .routes(routes!(nodes::list_nodes))
        .routes(routes!(nodes::show_node))
        .routes(routes!(nodes::replace_node))
        .routes(routes!(operations::list_operations))
        .routes(routes!(operations::show_operation))
        .routes(routes!(stream::stream_operation))
        .routes(routes!(operations::cancel_operation))
}

/// The API's description, as it is committed and as `/v1/openapi.json` answers it.
pub fn openapi() -> OpenApi {
    let (_, document) = routes().split_for_parts();
    name_aliases(finish(document))
}

/// Gives type aliases, which the document would call by their Rust types, names of their own.
fn name_aliases(document: OpenApi) -> OpenApi {
    let renamed = || -> Result<OpenApi, serde_json::Error> {
        let mut value = serde_json::to_value(&document)?;
        if let Some(schemas) = value
            .pointer_mut("/components/schemas")
            .and_then(|v| v.as_object_mut())
        {
            for (from, to) in [("BTreeMap", "Labels"), ("String", "RoleName")] {
                if let Some(schema) = schemas.remove(from) {
                    schemas.insert(to.to_owned(), schema);
                }
            }
        }
        let text = value
            .to_string()
            .replace(
                "\"#/components/schemas/BTreeMap\"",
                "\"#/components/schemas/Labels\"",
            )
            .replace(
                "\"#/components/schemas/String\"",
                "\"#/components/schemas/RoleName\"",
            );
        serde_json::from_str(&text)
    };
    renamed().unwrap_or(document)
}

/// Adds what holds for every operation: title, errors, and how one proves who one is.
fn finish(mut document: OpenApi) -> OpenApi {
    document.info.title = "ConPaaS Director".to_owned();
    document.info.description = Some("Applications on machines of their own.".to_owned());
    document.info.version = conpaas_model::VERSION.to_owned();
    document.info.license = None;
    document.info.contact = None;
    type ErrorBody = conpaas_model::api::ErrorBody;
    let mut components = document
        .components
        .take()
        .unwrap_or_else(|| ComponentsBuilder::new().build());
    let name = ErrorBody::name().into_owned();
    components.schemas.insert(name.clone(), ErrorBody::schema());
    let bearer = HttpBuilder::new().scheme(HttpAuthScheme::Bearer).build();
    let scheme = RefOr::T(SecurityScheme::Http(bearer));
    components
        .security_schemes
        .insert("token".to_owned(), scheme);
    document.components = Some(components);
    for (path, item) in &mut document.paths.paths {
        let operations = [
            (http::Method::GET, &mut item.get),
            (http::Method::POST, &mut item.post),
            (http::Method::PATCH, &mut item.patch),
            (http::Method::DELETE, &mut item.delete),
            (http::Method::PUT, &mut item.put),
        ];
        for (method, operation) in operations {
            let Some(operation) = operation else { continue };
            let content = Content::new(Some(RefOr::Ref(Ref::from_schema_name(&name))));
            let response = ResponseBuilder::new()
                .description("What went wrong, why, and the next step.")
                .content("application/json", content)
                .build();
            operation
                .responses
                .responses
                .insert("default".to_owned(), RefOr::T(response));
            let id = operation.operation_id.clone().unwrap_or_default();
            operation.tags = None;
            let headers = [
                (
                    gate::takes_key(&method, &id),
                    "Idempotency-Key",
                    "Names this request, so that it can be sent again without happening twice.",
                ),
                (
                    gate::takes_precondition(&method, path),
                    "If-Match",
                    "The ETag of what one looked at, or its generation: refused if it changed since.",
                ),
            ];
            for (_, name, description) in headers.into_iter().filter(|(taken, ..)| *taken) {
                let text = ObjectBuilder::new().schema_type(Type::String).build();
                let header = ParameterBuilder::new()
                    .name(name)
                    .parameter_in(ParameterIn::Header)
                    .required(Required::False)
                    .description(Some(description))
                    .schema(Some(text))
                    .build();
                operation
                    .parameters
                    .get_or_insert_default()
                    .push(RefOr::T(header));
            }
            if crate::access::of(&id) != Some(crate::access::Access::Public) {
                let need = utoipa::openapi::SecurityRequirement::new("token", Vec::<String>::new());
                operation.security = Some(vec![need]);
            }
        }
    }
    document
}

/// Operation ids by method and path template.
pub(crate) type Operations = HashMap<(http::Method, String), String>;

/// Every operation of the document.
pub fn operations_of(document: &OpenApi) -> Operations {
    let mut found = HashMap::new();
    for (path, item) in &document.paths.paths {
        let operations = [
            (http::Method::GET, &item.get),
            (http::Method::POST, &item.post),
            (http::Method::PUT, &item.put),
            (http::Method::PATCH, &item.patch),
            (http::Method::DELETE, &item.delete),
        ];
        for (method, operation) in operations {
            if let Some(id) = operation
                .as_ref()
                .and_then(|found| found.operation_id.clone())
            {
                found.insert((method, path.clone()), id);
            }
        }
    }
    found
}

/// The API as a service, every request of which passes the gate.
pub fn router(shared: Arc<Shared>) -> Router {
    let (router, document) = routes().split_for_parts();
    let operations = Arc::new(operations_of(&document));
    let gate = gate::Gate {
        shared: shared.clone(),
        operations,
    };
    router
        .fallback(answer::no_such_path)
        .method_not_allowed_fallback(answer::no_such_method)
        .layer(axum::middleware::from_fn_with_state(gate, gate::pass))
        .layer(axum::middleware::from_fn(conditional::tag))
        .layer(axum::extract::DefaultBodyLimit::max(MAX_JSON))
        .with_state(shared)
}
