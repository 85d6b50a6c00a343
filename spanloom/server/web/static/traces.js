// The list of traces: filters that leave empty fields out of the address, and live refresh.

import { localiseTimes } from "./common.js";

const REFRESH_MS = 3000;
const filters = document.getElementById("filters");

filters.addEventListener("formdata", ({ formData }) => {
  for (const [name, value] of [...formData]) if (value === "") formData.delete(name);
});
for (const choice of filters.querySelectorAll("select, input[type=checkbox]")) {
  choice.addEventListener("change", () => filters.requestSubmit());
}

async function refresh() {
  const answer = await fetch(location.href, { headers: { accept: "text/html" } });
  const fresh = new DOMParser().parseFromString(await answer.text(), "text/html");
  const results = fresh.getElementById("results");
  if (!results) return;
  const live = results.querySelector("#live");
  if (live) live.checked = true;
  document.getElementById("results").replaceWith(results);
  localiseTimes(results);
}

let refreshing = false;
setInterval(async () => {
  const live = document.getElementById("live");
  if (refreshing || document.hidden || !live?.checked) return;
  refreshing = true;
  try {
    await refresh();
  } catch {
    // the server is away: the list stays, and the next tick tries again
  } finally {
    refreshing = false;
  }
}, REFRESH_MS);
document.addEventListener("change", (event) => {
  if (event.target.id === "live") sessionStorage.setItem("live", event.target.checked ? "1" : "");
});
const live = document.getElementById("live");
if (live && sessionStorage.getItem("live")) live.checked = true;
