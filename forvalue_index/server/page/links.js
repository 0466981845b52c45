// The part of the address after # says what is shown: a view and its parameters.

export function link(view, parameters = {}) {
  const query = new URLSearchParams();
  for (const [name, value] of Object.entries(parameters)) {
    for (const each of [value].flat()) {
      if (each !== "" && each !== null && each !== undefined) query.append(name, String(each));
    }
  }
  return `#/${view}${query.size > 0 ? `?${query}` : ""}`;
}

// Keeps the address true to what is shown, without showing it anew.
export function remember(view, parameters) {
  history.replaceState(null, "", link(view, parameters));
}

export function openedAt() {
  const [name, query] = location.hash.replace(/^#\/?/, "").split("?");
  return [name, new URLSearchParams(query)];
}
