//! What `k3s status --timeline` says of a start.

use std::collections::BTreeMap;

use cluster_tests::{Network, Node, step};

#[test]
fn the_timeline_tells_what_a_start_was_spent_on() {
    let network = Network::new();
    let node = Node::boot(&network, "server");
    let [first, second] = ["first", "second"].map(|start| {
        step(&format!("the {start} start"), || {
            node.start_k3s("");
            node.wait_for_status("All components are ready.");
        });
        let text = node.succeed("k3s status --timeline");
        println!("{text}");
        node.stop_k3s();
        spans(&text)
    });
    step("everybody began once what it waits for was ready, and was ready itself", || {
        for spans in [&first, &second] {
            let names = spans.keys().map(String::as_str).collect::<Vec<_>>();
            let expected = [
                "clock",
                "containerd",
                "datastore",
                "images",
                "kube-apiserver",
                "kube-controller-manager",
                "kube-proxy",
                "kube-scheduler",
                "kubelet",
            ];
            assert_eq!(names, expected);
            for (name, span) in spans {
                assert!(span.began <= span.ready, "{name}: {span:?}");
                let after = span.after.as_ref().map(|after| &spans[after]);
                assert!(after.is_none_or(|after| after.ready <= span.began), "{name}: {span:?} after {after:?}");
            }
            assert_eq!(spans["kubelet"].after.as_deref(), Some("images"));
            assert_eq!(spans["kube-proxy"].after.as_deref(), Some("kube-apiserver"));
            assert!(spans["images"].began >= spans["containerd"].ready);
        }
    });
    step("a first start makes certificates and imports images, and the next one does not", || {
        for gate in ["datastore", "images"] {
            let took = |spans: &BTreeMap<String, Span>| spans[gate].ready - spans[gate].began;
            assert!(took(&first) > took(&second), "{gate}: {} and {} ms", took(&first), took(&second));
        }
    });
}

/// A line of the picture; times in hundredths of a second.
#[derive(Debug)]
struct Span {
    after: Option<String>,
    began: u32,
    ready: u32,
}

fn spans(text: &str) -> BTreeMap<String, Span> {
    let time = |text: &str| text.replace('.', "").parse().unwrap_or_else(|_| panic!("{text} is no time"));
    let span = |line: &str| {
        let words: Vec<_> = line.split_whitespace().collect();
        let (after, times) = match words[..] {
            [name, began, ready, _, _] => ((name, None), (began, ready)),
            [name, after, began, ready, _, _] => ((name, Some(after.to_owned())), (began, ready)),
            _ => panic!("this is no line of the timeline: {line}"),
        };
        (after.0.to_owned(), Span { after: after.1, began: time(times.0), ready: time(times.1) })
    };
    text.lines().skip(1).map(span).collect()
}
