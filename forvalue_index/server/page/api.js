// Requests to the server that the page came from, and to no other.

const NAME = "forvalue-token";

// The token is kept for this tab.
export function keepToken(token) {
  sessionStorage.setItem(NAME, token);
}

export const hasToken = () => sessionStorage.getItem(NAME) !== null;

// It may come after # in the address, which browsers send to nobody.
export function takeToken() {
  const found = /^#token=(.+)$/.exec(location.hash);
  if (!found) return;
  keepToken(found[1]);
  history.replaceState(null, "", location.pathname);
}

function headers(more = {}) {
  const token = sessionStorage.getItem(NAME);
  return token === null ? more : { authorization: `Bearer ${token}`, ...more };
}

async function answered(request) {
  let response;
  try {
    response = await request;
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new Error("The server does not answer: is it still running?");
  }
  if (response.ok) return response;
  const said = await response.json().catch(() => ({}));
  const sentence = said.error ?? `The server answers with status ${response.status}.`;
  throw Object.assign(new Error(sentence), { status: response.status });
}

function address(path, parameters) {
  const query = new URLSearchParams();
  for (const [name, value] of Object.entries(parameters)) {
    for (const each of [value].flat()) query.append(name, each);
  }
  return `api/${path}${query.size > 0 ? `?${query}` : ""}`;
}

function fetched(path, parameters, signal) {
  return answered(fetch(address(path, parameters), { headers: headers(), signal }));
}

export async function get(path, parameters = {}, signal = undefined) {
  return (await fetched(path, parameters, signal)).json();
}

// What is at a path, as a file.
export async function blob(path, parameters = {}, signal = undefined) {
  return (await fetched(path, parameters, signal)).blob();
}

function sent(method, path, body, signal) {
  return answered(
    fetch(`api/${path}`, {
      method,
      headers: headers({ "content-type": "application/json" }),
      body: body === undefined ? undefined : JSON.stringify(body),
      signal,
    }),
  );
}

export async function post(path, body, signal = undefined) {
  return (await sent("POST", path, body, signal)).json();
}

export async function put(path, body) {
  return (await sent("PUT", path, body)).json();
}

export async function cancel(path) {
  return (await sent("DELETE", path)).json();
}

// Yields the server-sent events of a request as [name, data].
export async function* events(path, body, signal) {
  const response = await sent("POST", path, body, signal);
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  let waiting = "";
  for (;;) {
    const { value, done } = await reader.read();
    if (done) return;
    waiting += value;
    const parts = waiting.split("\n\n");
    waiting = parts.pop();
    for (const part of parts) {
      const found = /^event: (\w+)\ndata: (.*)$/.exec(part);
      if (found) yield [found[1], JSON.parse(found[2])];
    }
  }
}
