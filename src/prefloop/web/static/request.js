// Requests to our own server: the CSRF token goes along, errors come back with the server's words.

export class Refused extends Error {
  // status 0: the server was not reached; `to`: the page to go to first, where one logs in or agrees to something
  constructor(status, message, to = "") {
    super(message);
    this.status = status;
    this.to = to;
  }
}

// Data and words that the page carries: <script type="application/json" id="…">
export function pageData(id) {
  return JSON.parse(document.getElementById(id)?.textContent || "{}");
}

const csrf = () => document.querySelector('meta[name="csrf"]')?.content || "";

// After a new login in another tab the session has another token; our own page has it.
async function renewToken() {
  const before = csrf();
  const page = await fetch(location.href, { credentials: "same-origin", redirect: "manual" }).catch(() => null);
  if (!page?.ok) return false;
  const found = new DOMParser().parseFromString(await page.text(), "text/html").querySelector('meta[name="csrf"]');
  const token = found?.content;
  if (!token || token === before) return false;
  document.querySelector('meta[name="csrf"]').content = token;
  return true;
}

async function send(...asked) {
  try {
    return await sendOnce(...asked);
  } catch (error) {
    if (error.status === 403 && asked[0] !== "GET" && (await renewToken())) return sendOnce(...asked);
    throw error;
  }
}

async function sendOnce(method, path, body, accept, signal, keepalive) {
  let response;
  try {
    response = await fetch(path, {
      method,
      headers: {
        Accept: accept,
        ...(method === "GET" ? {} : { "X-CSRF-Token": csrf() }),
        ...(body === undefined ? {} : { "Content-Type": "application/json" }),
      },
      body: body === undefined ? undefined : JSON.stringify(body),
      credentials: "same-origin",
      signal,
      keepalive,
    });
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new Refused(0, "");
  }
  if (response.redirected) throw new Refused(401, "", response.url);
  if (!response.ok) throw new Refused(response.status, await errorOf(response));
  return response;
}

async function errorOf(response) {
  const text = await response.text();
  try {
    return JSON.parse(text).error || "";
  } catch {
    return "";
  }
}

// JSON in, JSON out; null for an answer without content. Throws Refused.
export async function request(method, path, body, { signal, keepalive } = {}) {
  const response = await send(method, path, body, "application/json", signal, keepalive);
  return response.status === 204 ? null : response.json();
}

// JSON in, a piece of our own HTML out. Throws Refused.
export async function fragment(method, path, body, { signal } = {}) {
  const response = await send(method, path, body, "text/html", signal);
  const template = document.createElement("template");
  template.innerHTML = await response.text();
  return template.content;
}
