// Every page works without this script. The script shows the buttons that need it, and sends each form only once.
"use strict";

for (const button of document.querySelectorAll("[data-copy]")) {
  if (!navigator.clipboard) continue;
  button.hidden = false;
  button.addEventListener("click", async () => {
    const { copy, copied, failed } = button.dataset;
    button.textContent = await navigator.clipboard.writeText(copy).then(() => copied, () => failed);
  });
}

for (const button of document.querySelectorAll("[data-print]")) {
  button.hidden = false;
  button.addEventListener("click", () => window.print());
}

const RESEND = 1000; // milliseconds: a second submission within this time is a double click
for (const form of document.querySelectorAll("form:not(.ending)")) {
  let sent = false;
  form.addEventListener("submit", (event) => {
    if (sent) event.preventDefault();
    sent = true;
    window.setTimeout(() => { sent = false; }, RESEND); // the user may have stopped the request
  });
}

// After a refusal, the address of the page is that of its form. Reload and Back must not send the form again.
for (const form of document.querySelectorAll("main form")) {
  if (form.action === window.location.href) window.history.replaceState(null, "", form.action);
}

// Load the page again. An address with a fragment (#main) would only scroll.
const load = () => window.location.replace(window.location.pathname + window.location.search);
window.addEventListener("pageshow", (event) => {
  if (event.persisted) load();
});

// Warn before the session ends, and prolong it at the user's request.
const WARNING = 120_000; // milliseconds
const ending = document.querySelector(".ending");
if (ending) {
  const later = (seconds) => Date.now() + 1000 * seconds;
  let end = later(Number(ending.dataset.seconds));
  const check = () => {
    const left = end - Date.now();
    if (left <= 0) { // once: a further load would abort the first
      window.clearInterval(timer);
      load();
    }
    ending.hidden = left > WARNING;
    // The browser scrolls the element with the focus to a place below the warning.
    document.documentElement.style.scrollPaddingTop = `${ending.offsetHeight}px`;
  };
  const timer = window.setInterval(check, 1000);
  check();
  ending.addEventListener("submit", async (event) => {
    event.preventDefault();
    const body = new URLSearchParams(new FormData(ending));
    const answer = await fetch(ending.action, { method: "POST", body });
    if (!answer.ok) return load();
    const { seconds } = await answer.json();
    end = later(seconds);
    const isLast = 1000 * seconds <= WARNING;
    ending.querySelector("span").hidden = !isLast;
    ending.querySelector("button").hidden = isLast;
    check();
  });
}

// The language of the page, with the region that the browser prefers: it decides the order of day and month.
const page = document.documentElement.lang;
const language = navigator.languages.find((tag) => tag.split("-")[0] === page.split("-")[0]) ?? page;

// Times in the browser's time zone. Without this script, they are in UTC.
const local = new Intl.DateTimeFormat(language, { dateStyle: "medium", timeStyle: "short" });
for (const time of document.querySelectorAll("time")) {
  const text = local.format(new Date(time.dateTime));
  if (time.textContent === time.title) time.textContent = text;
  time.title = text;
}

const relative = new Intl.RelativeTimeFormat(language);
for (const countdown of document.querySelectorAll("[data-countdown]")) {
  const end = Date.now() + 1000 * Number(countdown.dataset.countdown);
  const timer = window.setInterval(() => {
    const left = Math.ceil((end - Date.now()) / 1000);
    countdown.textContent = left > 0 ? relative.format(left, "second") : countdown.dataset.now;
    if (left <= 0) window.clearInterval(timer);
  }, 1000);
}
