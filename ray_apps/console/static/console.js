// What a page cannot do on the server: the viewer's time zone, and a choice of colours. Every page works without it.
"use strict";

const short = new Intl.DateTimeFormat(undefined, { dateStyle: "medium", timeStyle: "short" });

function showTimes(within) {
  for (const each of within.querySelectorAll("time[datetime]")) {
    const at = new Date(each.dateTime);
    if (!Number.isNaN(at.getTime())) each.textContent = short.format(at);
  }
}

function showTicks(within) {
  for (const each of within.querySelectorAll("text[data-time]")) {
    const at = new Date(each.dataset.time);
    const ofDay = each.textContent.includes(":");
    each.textContent = ofDay
      ? at.toLocaleTimeString(undefined, { timeStyle: "short" })
      : at.toLocaleDateString(undefined, { day: "numeric", month: "short" });
  }
}

// MLflow's client prints links such as `/#/experiments/1/runs/RUN`, of which a server sees `/` alone.
function followTrackingLink() {
  const link = /^#\/experiments\/[^/]+\/runs\/([A-Za-z0-9_-]+)/.exec(location.hash);
  if (link) location.replace(`/ui/runs/${link[1]}`);
}

function offerThemes() {
  const button = document.querySelector("[data-theme-toggle]");
  const root = document.documentElement;
  const systemDark = matchMedia("(prefers-color-scheme: dark)");
  const current = () => root.dataset.theme || (systemDark.matches ? "dark" : "light");
  const label = () => { button.textContent = current() === "dark" ? "Light" : "Dark"; };
  button.hidden = false;
  button.addEventListener("click", () => {
    const next = current() === "dark" ? "light" : "dark";
    root.dataset.theme = next;
    document.cookie = `toque-theme=${next}; path=/; max-age=31536000; samesite=lax`;
    label();
  });
  systemDark.addEventListener("change", label);
  label();
}

function closeMenus() {
  const menus = document.querySelectorAll(".menu");
  document.addEventListener("click", (event) => {
    for (const each of menus) if (!each.contains(event.target)) each.open = false;
  });
  document.addEventListener("keydown", (event) => {
    if (event.key !== "Escape") return;
    for (const each of menus) {
      if (each.open && each.contains(document.activeElement)) each.querySelector("summary").focus();
      each.open = false;
    }
  });
}

// A page follows its topics: it gets its content again when one changed, and writes figures as they come. One that is hidden
// follows nothing, as a browser has few connections to one host, and asks for itself when it is seen again.
function followChanges() {
  const main = document.querySelector("main[data-live]");
  if (!main) return;
  const button = document.querySelector("[data-live-state]");
  const topics = main.dataset.live.split(" ").map((each) => `topic=${encodeURIComponent(each)}`);
  topics.push(`address=${encodeURIComponent(location.pathname + location.search)}`);
  let source = null, asking = false, missed = false;

  function write(next) {
    showTimes(next);
    showTicks(next);
    replace(main, next);
    button.hidden = true;
  }

  async function show() {
    if (asking) {
      missed = true;
      return;
    }
    asking = true;
    missed = false;
    try {
      const answer = await fetch(location.href, { headers: { Accept: "text/html" } });
      if (!answer.ok) return location.reload();  // such as when the session has ended
      write(parsed(await answer.text()).getElementById("main"));
    } catch {
      missed = true;  // the gateway is away; the stream comes back with it, and tells
    } finally {
      asking = false;
    }
    if (missed) setTimeout(show, 500);
  }

  function unlessEdited(update) {
    if (isEdited(main)) button.hidden = false;  // what somebody writes is not taken away
    else update();
  }

  function follow() {
    source = new EventSource(`${main.dataset.liveFrom}?${topics.join("&")}`);
    source.addEventListener("changed", () => unlessEdited(show));
    source.addEventListener("page", (event) => unlessEdited(() => write(parsed(JSON.parse(event.data)).body)));
    source.addEventListener("figures", (event) => {
      const figures = JSON.parse(event.data);
      for (const each of main.querySelectorAll("[data-figure]")) {
        const text = figures[each.dataset.figure];
        if (text !== undefined && each.textContent !== text) each.textContent = text;
      }
    });
  }

  // A new stream knows of no content, so whatever it sends later takes the place of what was asked for here.
  function again(update) {
    source?.close();
    if (document.hidden) return;
    follow();
    update();
  }

  button.addEventListener("click", () => again(show));
  document.addEventListener("visibilitychange", () => again(() => unlessEdited(show)));
  if (!document.hidden) follow();
}

function parsed(html) {
  return new DOMParser().parseFromString(html, "text/html");
}

function isEdited(main) {
  if (main.contains(document.activeElement) && document.activeElement.matches("input, select, textarea")) return true;
  return [...main.querySelectorAll("input, textarea, select")].some((each) => {
    if (each.localName === "select") {
      const first = [...each.options].find((option) => option.defaultSelected) ?? each.options[0];
      return each.value !== first?.value;
    }
    if (each.type === "checkbox" || each.type === "radio") return each.checked !== each.defaultChecked;
    return each.type !== "hidden" && each.value !== each.defaultValue;
  });
}

function replace(main, next) {
  const open = [...main.querySelectorAll("details")].map((each) => each.open);
  const focused = main.contains(document.activeElement) && main !== document.activeElement ? document.activeElement : null;
  const key = focused && identity(focused);
  const notice = main.querySelector(":scope > .notice");  // said once: an update that follows at once must not take it away
  main.replaceChildren(...(notice ? [notice] : []), ...next.childNodes);
  main.querySelectorAll("details").forEach((each, index) => { each.open = open[index] ?? each.open; });
  if (!focused) return;
  const same = [...main.querySelectorAll(focused.localName)].find((each) => identity(each) === key);
  (same ?? main).focus({ preventScroll: true });
}

// What an element is for a person, the same in two renderings of a page.
function identity(element) {
  const names = ["id", "href", "name", "value", "aria-label"].map((name) => element.getAttribute(name));
  return JSON.stringify([...names, element.form?.getAttribute("action"), element.matches("a, button, summary") && element.textContent.trim()]);
}

// What cannot be taken back is asked once more; without scripts it is done at once, as the button says.
document.addEventListener("submit", (event) => {
  const question = event.submitter?.dataset.confirm;
  if (question && !window.confirm(question)) event.preventDefault();
});

showTimes(document);
showTicks(document);
offerThemes();
closeMenus();
followChanges();
followTrackingLink();
