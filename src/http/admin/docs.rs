//! The `OpenAPI` document as a page for people: no scripts, nothing from elsewhere.

use std::{fmt::Write as _, sync::LazyLock};

use actix_web::{HttpResponse, http::header};
use serde_json::Value;

use super::{
    openapi,
    table::{OPERATIONS, Operation},
};

/// The page lets nothing in but its own style sheet.
const POLICY: &str = "default-src 'none'; style-src 'self'; base-uri 'none'; form-action 'none'; \
     frame-ancestors 'none'";

static PAGE: LazyLock<String> = LazyLock::new(|| render(&openapi::document()));

/// `GET /docs`.
pub(super) fn page() -> HttpResponse {
    guarded("text/html; charset=utf-8", PAGE.as_str())
}

/// `GET /docs/style.css`.
pub(super) fn style() -> HttpResponse {
    guarded("text/css; charset=utf-8", include_str!("docs.css"))
}

fn guarded(content_type: &str, body: &'static str) -> HttpResponse {
    HttpResponse::Ok()
        .insert_header((header::CACHE_CONTROL, "no-store"))
        .insert_header((header::CONTENT_SECURITY_POLICY, POLICY))
        .insert_header((header::X_CONTENT_TYPE_OPTIONS, "nosniff"))
        .insert_header((header::REFERRER_POLICY, "no-referrer"))
        .insert_header((header::CONTENT_TYPE, content_type))
        .body(body)
}

/// The path of a value in the document.
fn at<'a>(value: &'a Value, path: &[&str]) -> &'a Value {
    path.iter()
        .fold(value, |value, name| value.get(name).unwrap_or(&Value::Null))
}

fn text(value: &Value) -> &str {
    value.as_str().unwrap_or_default()
}

fn escape(text: &str) -> String {
    text.replace('&', "&amp;")
        .replace('<', "&lt;")
        .replace('>', "&gt;")
        .replace('"', "&quot;")
}

fn render(document: &Value) -> String {
    let mut families: Vec<&str> = OPERATIONS.iter().map(openapi::family).collect();
    families.dedup();
    let (mut menu, mut main) = (String::new(), String::new());
    for family in families {
        let operations = || OPERATIONS.iter().filter(|o| openapi::family(o) == family);
        let _ = write!(menu, "<h2><a href=\"#{family}\">{family}</a></h2><ul>");
        let _ = write!(main, "<section id=\"{family}\"><h2>{family}</h2>");
        for operation in operations() {
            let (id, summary) = (operation.id, escape(operation.summary));
            let _ = write!(menu, "<li><a href=\"#{id}\">{summary}</a></li>");
            main.push_str(&call(document, operation));
        }
        menu.push_str("</ul>");
        main.push_str("</section>");
    }
    menu.push_str("<h2><a href=\"#schemas\">schemas</a></h2>");
    main.push_str("<section id=\"schemas\"><h2>schemas</h2>");
    for (name, schema) in at(document, &["components", "schemas"])
        .as_object()
        .into_iter()
        .flatten()
    {
        let _ = write!(
            main,
            "<article id=\"schema-{name}\"><h3>{name}</h3><p>{}</p>{}</article>",
            escape(text(at(schema, &["description"]))),
            members(schema),
        );
    }
    main.push_str("</section>");
    format!(
        "<!doctype html><html lang=\"en\"><head><meta charset=\"utf-8\">\
         <meta name=\"viewport\" content=\"width=device-width, initial-scale=1\">\
         <title>{title}</title><link rel=\"stylesheet\" href=\"/docs/style.css\"></head>\
         <body><nav aria-label=\"Calls\">{menu}</nav><main><header><h1>{title}</h1><p>{about}</p>\
         <p>For programs: <a href=\"/admin/v1/openapi.json\">openapi.json</a></p></header>{main}</main></body></html>",
        title = escape(text(at(document, &["info", "title"]))),
        about = escape(text(at(document, &["info", "description"]))),
    )
}

fn call(document: &Value, operation: &Operation) -> String {
    let method = operation
        .method
        .names()
        .first()
        .copied()
        .unwrap_or_default();
    let described = at(
        document,
        &["paths", operation.path, &method.to_ascii_lowercase()],
    );
    let mut html = format!(
        "<article id=\"{id}\"><h3>{summary}</h3><p class=\"route\"><span class=\"method {method}\">{method}</span> \
         <code>{path}</code></p><p>{description}</p><p>Scope: <code>{scope}</code></p>",
        id = operation.id,
        summary = escape(operation.summary),
        path = escape(operation.path).replace('/', "<wbr>/"),
        description = escape(operation.description),
        scope = escape(operation.scope),
    );
    let parameters = at(described, &["parameters"])
        .as_array()
        .map_or(&[][..], Vec::as_slice);
    if !parameters.is_empty() {
        html.push_str("<h4>Parameters</h4><dl>");
        for parameter in parameters {
            let schema = at(parameter, &["schema"]);
            let _ = write!(
                html,
                "<dt><code>{}</code> <small>{}, {}</small></dt><dd>{}</dd>",
                escape(text(at(parameter, &["name"]))),
                escape(text(at(parameter, &["in"]))),
                type_of(schema),
                escape(text(at(parameter, &["description"]))),
            );
        }
        html.push_str("</dl>");
    }
    if let Some(body) = &operation.body {
        let _ = write!(
            html,
            "<h4>Body</h4><p>{} as <code>{}</code></p><pre>{}</pre>",
            link(body.schema),
            body.media_types.join("</code> or <code>"),
            escape(body.example),
        );
    }
    html.push_str("<h4>Answers</h4><dl>");
    for (status, answer) in at(described, &["responses"])
        .as_object()
        .into_iter()
        .flatten()
    {
        let content = at(answer, &["content"]).as_object();
        let schema = content.and_then(|content| content.values().next());
        let shown = schema.map_or(String::new(), |media| type_of(at(media, &["schema"])));
        let _ = write!(
            html,
            "<dt><code>{status}</code> <small>{shown}</small></dt><dd>{}</dd>",
            escape(text(at(answer, &["description"]))),
        );
    }
    html.push_str("</dl></article>");
    html
}

fn members(schema: &Value) -> String {
    let required = at(schema, &["required"]).as_array();
    let is_required =
        |name: &str| required.is_some_and(|names| names.iter().any(|other| other == name));
    let mut html = String::from("<dl>");
    for (name, member) in at(schema, &["properties"])
        .as_object()
        .into_iter()
        .flatten()
    {
        let _ = write!(
            html,
            "<dt><code>{}</code> <small>{}{}</small></dt><dd>{}</dd>",
            escape(name),
            type_of(member),
            if is_required(name) {
                ""
            } else {
                ", may be absent"
            },
            escape(text(at(member, &["description"]))),
        );
    }
    html.push_str("</dl>");
    html
}

/// A type in a few words, with a link to where it is described.
fn type_of(schema: &Value) -> String {
    if let Some(reference) = at(schema, &["$ref"]).as_str() {
        return link(reference.rsplit('/').next().unwrap_or_default());
    }
    let named = match at(schema, &["type"]) {
        Value::Array(types) => types.iter().map(text).collect::<Vec<_>>().join(" or "),
        other => text(other).to_owned(),
    };
    if let Some(items) = at(schema, &["properties", "items", "items"]).as_object() {
        return format!("list of {}", type_of(&Value::Object(items.clone())));
    }
    match at(schema, &["items"]) {
        Value::Null => escape(&named),
        items => format!("{} of {}", escape(&named), type_of(items)),
    }
}

fn link(schema: &str) -> String {
    let name = escape(schema);
    format!("<a href=\"#schema-{name}\">{name}</a>")
}
