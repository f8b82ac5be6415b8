//! The websocket by which servers reach into nodes that they cannot dial: remotedialer's wire protocol, as k3s speaks it.
