//! The next step for errors that name none of their own, by their stable code: one table, so that
//! no refusal leaves a person without a way on.

/// What to do next after an error with this code.
pub fn usual(code: &str) -> &'static str {
    match code {
        "not_found" => {
            "look whether it is written right, or was deleted meanwhile: list what there is"
        }
        "passwords_busy" | "too_many_attempts" => "wait as long as it says, then try once more",
        "password_too_short" => "take a longer one",
        "password_too_long" => "take a shorter one",
        "invalid_count" => "give a role and how many nodes it should have, for instance ROLE=2",
        "unknown_instance_type" => "see what sizes there are: conpaas instance-type list",
        "unknown_role" | "unknown_setting" | "unknown_service_type" | "unknown_command" => {
            "see what there is: conpaas service types TYPE"
        }
        "invalid_value" | "invalid_setting" | "invalid_argument" => {
            "see the bounds and units: conpaas service types TYPE"
        }
        "too_large" => "send less at once, or ask the operator for a larger bound",
        "command_failed" => "see what the nodes wrote: conpaas logs APP/SERVICE",
        "invalid_query" | "invalid_path" | "invalid_body" | "no_such_method" => {
            "the API is described at /v1/openapi.json"
        }
        "invalid_cursor" => "begin again without a cursor",
        "invalid_key" => "take a random one for each new request",
        "key_reused" => "take another key for another request",
        "forbidden" => "ask an operator, or log in as another user: conpaas login",
        "invalid_lifetime" => "ask for a shorter lifetime",
        "too_long" | "bad_labels" => "shorten it",
        "invalid_name" | "name_reserved" | "name_too_long" | "name_taken" => "choose another name",
        "oneself" => "let another operator do it",
        "takes_no_code" => "see which types take code: conpaas service types",
        "being_deleted" => "wait for it to be gone, then make it anew: conpaas operation list",
        "system_service" => "start, stop or delete the application instead",
        "nothing_before" => "see its releases: conpaas service releases APP/SERVICE",
        "already_ended" => "see how it ended: conpaas operation list",
        "not_cancellable" => "let it end; a deleted application can come back: conpaas app restore",
        _ => "conpaas --help tells what can be done",
    }
}
