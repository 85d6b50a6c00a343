// What every page does: local times, copy buttons, waiting for a trace that is on its way.

/** Rewrite `<time>` elements below `root` into the reader's time zone; the title keeps UTC. */
export function localiseTimes(root = document) {
  for (const time of root.querySelectorAll("time[datetime]")) {
    const moment = new Date(time.dateTime);
    if (Number.isNaN(moment.getTime())) continue;
    const two = (number) => String(number).padStart(2, "0");
    const clock = [moment.getHours(), moment.getMinutes(), moment.getSeconds()].map(two).join(":");
    const day = [moment.getFullYear(), two(moment.getMonth() + 1), two(moment.getDate())].join("-");
    const precise = "precise" in time.dataset;
    const fraction = `.${String(moment.getMilliseconds()).padStart(3, "0")}`;
    const today = moment.toDateString() === new Date().toDateString();
    time.textContent = (today && !precise ? "" : `${day} `) + clock + (precise ? fraction : "");
  }
}

async function copy(text, button) {
  try {
    await navigator.clipboard.writeText(text);
  } catch {
    return; // no permission: the text stays selectable
  }
  button.classList.add("copied");
  setTimeout(() => button.classList.remove("copied"), 1200);
}

document.addEventListener("click", (event) => {
  const button = event.target.closest("[data-copy], .copyable");
  if (!button || String(getSelection())) return;
  copy(button.dataset.copy ?? button.textContent, button);
});

/** On "not found": look again for a minute, because the trace may be on its way. */
function retryLater() {
  const waiting = document.querySelector("[data-retry]");
  if (!waiting) return;
  const key = `retries:${location.pathname}`;
  const tries = Number(sessionStorage.getItem(key) ?? 0);
  if (tries >= 30) {
    sessionStorage.removeItem(key);
    return;
  }
  waiting.querySelector("[data-retry-note]").textContent = "This page looks again by itself.";
  setTimeout(() => {
    sessionStorage.setItem(key, String(tries + 1));
    location.reload();
  }, Number(waiting.dataset.retry));
}

localiseTimes();
retryLater();
